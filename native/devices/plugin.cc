// plugin.cc - finds plug-in libraries beside the addon.
#include "plugin.h"

#include <dlfcn.h>

#include "driver.h"

namespace cria {

namespace {

// Of a function that a library exports. The library stays: objects of it may live to the end.
template <class Function>
Function find(const std::string& library, const char* name) {
  Dl_info self{};
  if (!dladdr(reinterpret_cast<void*>(&open_plugin), &self) || !self.dli_fname)
    fail("ERR_DEVICE_UNAVAILABLE", "device ", library, ": the addon does not know its own folder");
  const std::string path = self.dli_fname;
  const std::string file = path.substr(0, path.rfind('/') + 1) + "cria_" + library + ".so";
  void* const handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle)
    fail("ERR_DEVICE_UNAVAILABLE", "device ", library, ": this build of cria has no such plug-in",
         library == "cuda" ? "; where nvcc 13 is, npm start builds it" : "", " (", dlerror(), ")");
  const auto function = reinterpret_cast<Function>(dlsym(handle, name));
  if (!function)
    fail("ERR_DEVICE_UNAVAILABLE", "device ", library, ": ", file, " is not a plug-in of this version of cria");
  return function;
}

}  // namespace

std::unique_ptr<Device> open_plugin(const std::string& library, const PluginOptions& options) {
  const std::string problem = library == "cuda" ? driver_problem(find_driver()) : "";
  if (!problem.empty())
    fail("ERR_DEVICE_UNAVAILABLE", "device cuda:", options.index, ": ", problem, "; 'cpu' is available");
  return std::unique_ptr<Device>(find<OpenPlugin>(library, kOpenPlugin)(options));
}

void report_gpus(std::vector<DeviceReport>& list) {
  const std::string problem = driver_problem(find_driver());
  if (!problem.empty()) return list.push_back({"cuda:0", false, problem});
  try {
    find<ListPlugin>("cuda", kListPlugin)(list);
  } catch (const Error& e) {
    list.push_back({"cuda:0", false, e.what()});
  }
}

PluginBuild describe_plugin() {
  PluginBuild build;
  find<DescribePlugin>("cuda", kDescribePlugin)(build);
  return build;
}

}  // namespace cria

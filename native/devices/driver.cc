// driver.cc - libcuda.so.1 and libnvidia-ml.so.1, opened at run time.
#include "driver.h"

#include <dlfcn.h>

#include <fstream>
#include <regex>

#include "../core/error.h"

namespace cria {
namespace {

template <class Function>
Function find(void* library, const char* name) {
  return library ? reinterpret_cast<Function>(dlsym(library, name)) : nullptr;
}

// NVML while it is needed. Every function returns 0 for success.
class Nvml {
 public:
  Nvml() : library_(dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL)) {
    const auto init = find<int (*)()>(library_, "nvmlInit_v2");
    ready_ = init && init() == 0;
  }
  ~Nvml() {
    const auto shutdown = find<int (*)()>(library_, "nvmlShutdown");
    if (ready_ && shutdown) shutdown();
  }
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

  std::string driver() const {
    char text[96] = "";
    const auto ask = find<int (*)(char*, unsigned)>(library_, "nvmlSystemGetDriverVersion");
    return ready_ && ask && ask(text, sizeof(text)) == 0 ? text : "";
  }
  double free_memory(const char* pci) const {
    struct Memory {
      unsigned long long total, free, used;
    } memory{};
    void* device = nullptr;
    const auto by_pci = find<int (*)(const char*, void**)>(library_, "nvmlDeviceGetHandleByPciBusId_v2");
    const auto ask = find<int (*)(void*, Memory*)>(library_, "nvmlDeviceGetMemoryInfo");
    const bool known = ready_ && by_pci && ask && by_pci(pci, &device) == 0 && ask(device, &memory) == 0;
    return known ? double(memory.free) : 0;
  }

 private:
  void* const library_;
  bool ready_ = false;
};

std::string version_from_proc() {
  std::ifstream file("/proc/driver/nvidia/version");
  std::string line;
  std::smatch match;
  std::getline(file, line);
  return std::regex_search(line, match, std::regex("\\s(\\d+\\.\\d+(\\.\\d+)?)\\s")) ? match[1].str() : "";
}

}  // namespace

Driver find_driver() {
  Driver driver;
  void* const libcuda = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (!libcuda) return driver;
  driver.there = true;
  const auto ask = find<int (*)(int*)>(libcuda, "cuDriverGetVersion");
  if (!ask || ask(&driver.cuda) != 0) driver.cuda = 0;
  driver.version = Nvml().driver();
  if (driver.version.empty()) driver.version = version_from_proc();
  return driver;
}

std::string cuda_text(int version) { return concat(version / 1000, ".", version % 1000 / 10); }

std::string driver_problem(const Driver& driver) {
  if (!driver.there) return "there is no NVIDIA driver (libcuda.so.1)";
  const std::string name = concat("the NVIDIA driver", driver.version.empty() ? "" : " ", driver.version);
  if (driver.cuda == 0) return name + " does not say which CUDA it is for";
  if (driver.cuda >= kDriverNeeded) return "";
  return concat(name, " is for CUDA ", cuda_text(driver.cuda), ", but cria needs CUDA ", cuda_text(kDriverNeeded),
                ": install driver R580 or newer");
}

double free_memory(const std::string& pci) { return Nvml().free_memory(pci.c_str()); }

std::string gpu_problem(const std::string& name, int major, int minor, const std::vector<std::string>& architectures) {
  const std::string found = concat(name, " has compute capability ", major, ".", minor, ", but ");
  if (major < 8) return found + "cria needs 8.0 (Ampere) or newer";
  std::string all;
  for (const std::string& a : architectures) {
    const bool exact = a.back() == 'a';
    const int arch = std::stoi(a);
    if (arch / 10 == major && (exact ? arch % 10 == minor : arch % 10 <= minor)) return "";
    all += (all.empty() ? "sm_" : ", sm_") + a;
  }
  return concat(found, "this plug-in was built for ", all,
                " only: build it for this GPU (npm start, with nvcc 13), or install a cria that has it");
}

}  // namespace cria

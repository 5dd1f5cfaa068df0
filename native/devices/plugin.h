// plugin.h - devices that live in libraries of their own, next to the addon, opened on first use.
#pragma once
#include "device.h"

namespace cria {

struct PluginOptions {
  int index = 0;         // of the GPU
  std::string settings;  // of the emulated machine: CRIA_SIMT
  bool fuse = true;
};
// What the GPU's library was made for.
struct PluginBuild {
  int cuda = 0;                            // of the CUDA runtime in it, as 13000
  std::vector<std::string> architectures;  // "80", "90a"
};
// What each library exports, under these names; the last two only the GPU's.
using OpenPlugin = Device* (*)(const PluginOptions&);
using ListPlugin = void (*)(std::vector<DeviceReport>&);
using DescribePlugin = void (*)(PluginBuild&);
constexpr const char *kOpenPlugin = "cria_open_device", *kListPlugin = "cria_list_devices",
                     *kDescribePlugin = "cria_describe";

// Opens the device of a library ("simt", "cuda"); ERR_DEVICE_UNAVAILABLE with the reason of the dynamic linker.
std::unique_ptr<Device> open_plugin(const std::string& library, const PluginOptions& options);

// Every GPU, or one line that says why there is none. A machine without a driver never loads the library.
void report_gpus(std::vector<DeviceReport>& list);

// Of the GPU's library; ERR_DEVICE_UNAVAILABLE where there is none.
PluginBuild describe_plugin();

}  // namespace cria

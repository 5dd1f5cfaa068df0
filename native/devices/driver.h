// driver.h - the NVIDIA driver of this machine, asked without the CUDA runtime: it opens what is there and links
// nothing.
#pragma once
#include <string>
#include <vector>

namespace cria {

constexpr int kDriverNeeded = 13000;  // CUDA 13.0: R580

struct Driver {
  bool there = false;   // libcuda.so.1
  int cuda = 0;         // the newest CUDA that it can run, as 13000; 0: it does not say
  std::string version;  // "580.159.03"; empty where nothing says it
};
Driver find_driver();
std::string cuda_text(int version);                // 13000 -> "13.0"
std::string driver_problem(const Driver& driver);  // why cria cannot use it; empty: it can

// Bytes that are free on the GPU with this PCI address; 0 where nothing says it. Makes no context.
double free_memory(const std::string& pci);

// Why a plug-in with these architectures ("80", "90a") cannot use a GPU of this compute capability; empty: it can. Code
// for 8.0 runs on 8.6, not on 9.0; code for 9.0a runs there alone.
std::string gpu_problem(const std::string& name, int major, int minor, const std::vector<std::string>& architectures);

}  // namespace cria

// memory.h - zeroed host memory, in huge pages where it is large.
#pragma once
#include "device.h"

namespace cria {

std::shared_ptr<Buffer> host_memory(size_t bytes);  // 64-byte aligned at least; ERR_OUT_OF_MEMORY
double physical_memory();                           // bytes in this machine, or in its control group if that is less

}  // namespace cria

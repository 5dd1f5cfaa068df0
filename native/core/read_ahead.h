// read_ahead.h - pages of a mapped file before somebody looks at them. Other memory is left as it is.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>

namespace cria {

// The pages that have these bytes.
struct PageRange {
  std::byte* first;
  size_t bytes;
};
inline PageRange pages_of(const void* data, size_t bytes) {
  const auto page = uintptr_t(sysconf(_SC_PAGESIZE)), at = reinterpret_cast<uintptr_t>(data), begin = at / page * page;
  return {reinterpret_cast<std::byte*>(begin), bytes + (at - begin)};
}

// The disk may begin to read them; returns at once.
inline void announce_pages(const void* data, size_t bytes) {
  const PageRange pages = pages_of(data, bytes);
  madvise(pages.first, pages.bytes, MADV_WILLNEED);
}

// Until they are in memory. false: the disk failed, or the file has become shorter.
inline bool read_pages(const void* data, size_t bytes) {
  const PageRange pages = pages_of(data, bytes);
#ifdef MADV_POPULATE_READ
  if (madvise(pages.first, pages.bytes, MADV_POPULATE_READ) == 0) return true;
  if (errno == EFAULT || errno == EIO) return false;
#endif
  // Older kernels and other systems: look at one byte of each page.
  const auto* at = reinterpret_cast<const volatile unsigned char*>(pages.first);
  for (size_t i = 0; i < pages.bytes; i += 4096) static_cast<void>(at[i]);
  return true;
}

}  // namespace cria

// mapped_file.h - a file as memory, without copying it.
//
// Limit: the mapping shows the file itself. A file that shrinks while it is open raises SIGBUS in whoever reads the
// pages that are gone. Replace a model by writing a new file and renaming it; never truncate one in place.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace cria {

// Called with the bytes read so far and the size of the file; returns false to stop.
using ReadProgress = std::function<bool(uint64_t done, uint64_t total)>;

// A regular file, mapped read-only; unmapped at the end of its life. Its descriptor is closed after mapping.
class MappedFile {
 public:
  explicit MappedFile(std::string path);  // throws ERR_MODEL_FILE_NOT_FOUND, ERR_MODEL_FILE_UNREADABLE
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  const std::byte* data() const { return data_; }  // nullptr when the file is empty
  uint64_t size() const { return size_; }

  // Reads the file into the page cache, which the kernel can take back at any time, and reports every 16 MiB.
  // Returns false when progress did. Throws ERR_MODEL_FILE_UNREADABLE when the disk fails or the file has shrunk.
  bool prefetch(const ReadProgress& progress) const;

 private:
  void wait_for(uint64_t begin, uint64_t size) const;

  std::string path_;
  std::byte* data_ = nullptr;
  uint64_t size_ = 0;
};

}  // namespace cria

#include "mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "error.h"
#include "json.h"
#include "read_ahead.h"

#if defined(__linux__) && !defined(MADV_POPULATE_READ)
#define MADV_POPULATE_READ 22  // Linux 5.14; the C library that prebuilt binaries are built with is older
#endif

namespace cria {
namespace {

static_assert(sizeof(size_t) == 8, "a model file does not fit into a 32-bit address space");

constexpr uint64_t step = uint64_t{16} << 20;  // of prefetch: a multiple of every page size; 1/6 s on a slow disk

std::string system_text(int error) { return std::generic_category().message(error); }

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

}  // namespace

MappedFile::MappedFile(std::string path) : path_(std::move(path)) {
  if (path_.find('\0') != std::string::npos) {
    fail("ERR_MODEL_FILE_NOT_FOUND", json_quoted(path_, 4096), ": a path cannot contain a zero byte.");
  }
  // O_NONBLOCK: opening a FIFO must not wait for somebody to write to it.
  const FileDescriptor fd(::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (fd.get() < 0) {
    const int error = errno;
    const bool missing = error == ENOENT || error == ENOTDIR;
    fail(missing ? "ERR_MODEL_FILE_NOT_FOUND" : "ERR_MODEL_FILE_UNREADABLE", path_,
         ": cannot be opened: ", system_text(error), ".",
         error == EACCES ? " Give the user that runs this process permission to read it." : "");
  }
  struct stat info{};
  if (::fstat(fd.get(), &info) != 0) {
    fail("ERR_MODEL_FILE_UNREADABLE", path_, ": cannot be examined: ", system_text(errno), ".");
  }
  if (!S_ISREG(info.st_mode)) {
    fail("ERR_MODEL_FILE_UNREADABLE", path_, ": expected a regular file, found ",
         S_ISDIR(info.st_mode)    ? "a folder"
         : S_ISFIFO(info.st_mode) ? "a FIFO"
                                  : "a device",
         ".");
  }
  size_ = static_cast<uint64_t>(info.st_size);
  if (size_ == 0) return;  // there is no empty mapping
  // MAP_PRIVATE: nothing is ever written, and file systems that refuse MAP_SHARED (some FUSE ones) allow it.
  void* data = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (data == MAP_FAILED) {
    fail("ERR_MODEL_FILE_UNREADABLE", path_, ": its ", size_, " bytes cannot be mapped: ", system_text(errno), ".");
  }
  data_ = static_cast<std::byte*>(data);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

bool MappedFile::prefetch(const ReadProgress& progress) const {
  const auto announce = [this](uint64_t begin) {
    if (begin < size_) announce_pages(data_ + begin, std::min(step, size_ - begin));
  };
  if (!progress(0, size_)) return false;
  announce(0);
  for (uint64_t begin = 0; begin < size_; begin += step) {
    announce(begin + step);  // the disk reads the next step while we wait for this one
    const uint64_t n = std::min(step, size_ - begin);
    wait_for(begin, n);
    if (!progress(begin + n, size_)) return false;
  }
  return true;
}

void MappedFile::wait_for(uint64_t begin, uint64_t size) const {
  if (!read_pages(data_ + begin, size))
    fail("ERR_MODEL_FILE_UNREADABLE", path_, ": bytes ", begin, " to ", begin + size,
         " cannot be read: the disk failed, or the file became shorter while it was open.");
}

}  // namespace cria

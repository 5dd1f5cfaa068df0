// safetensors.h - weight files, mapped, never copied.
//
// A file is: 8 bytes, the little-endian length N of the header | N bytes of JSON, padded with spaces | the data.
// The header: {"name": {"dtype": "BF16", "shape": [rows, cols], "data_offsets": [begin, end]}, ..., "__metadata__":
// {...}} where begin and end count from the first byte of the data. The tensors cover the data exactly, each byte once.
//
// A file is refused unless all of this holds, so that no size in it is ever believed: what a TensorInfo points to lies
// inside the mapping (whose limit mapped_file.h tells). Memory stays below the size of the file + 4 MB, whatever the
// header says.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "mapped_file.h"

namespace cria {

struct TensorInfo {
  std::string name;            // UTF-8; may be empty or hold any character
  const char* dtype = "";      // as the format spells it: "BF16"
  std::vector<int64_t> shape;  // row-major, the last one contiguous; [] is a scalar
  const std::byte* data = nullptr;
  uint64_t begin = 0;  // of data, counted from the first byte of the data section
  uint64_t bytes = 0;  // 0 when a dimension is 0
  bool aligned =
      true;  // for its element type; false where an odd header length shifts the data: such a tensor is copied
};

// The tensors of a file that lies in memory, in the order of their data. path is for messages only.
std::vector<TensorInfo> parse_safetensors(const std::byte* file, uint64_t size, const std::string& path);

class Safetensors {
 public:
  // Throws ERR_MODEL_FILE_* or, for a file that is not valid, ERR_SAFETENSORS_*. Tensors are valid while the result
  // lives.
  static std::shared_ptr<const Safetensors> open(const std::string& path);

  const std::string& path() const { return file_.path(); }
  uint64_t size() const { return file_.size(); }
  const std::vector<TensorInfo>& tensors() const { return tensors_; }  // in the order of their data
  const TensorInfo* find(std::string_view name) const;                 // nullptr when there is none
  bool prefetch(const ReadProgress& progress) const { return file_.prefetch(progress); }

 private:
  explicit Safetensors(const std::string& path);

  MappedFile file_;
  std::vector<TensorInfo> tensors_;
};

}  // namespace cria

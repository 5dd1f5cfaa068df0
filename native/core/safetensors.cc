#include "safetensors.h"

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>

#include "error.h"
#include "json.h"

namespace cria {
namespace {

constexpr uint64_t length_bytes = 8;
constexpr uint64_t max_header_bytes = 100'000'000;  // as in the reference implementation
constexpr size_t max_rank = 8;
// Llama 3.1 405B has 1138. At 96 bytes a tensor, 64 for its shape and half as much again while the vector grows, this
// many take less than 4 MB next to their names, which are shorter than the header.
constexpr size_t max_tensors = 16'384;

constexpr const char* download_again = " The file is damaged: download it again.";
constexpr const char* write_again = " Save the model again with a current safetensors library.";

struct ElementType {
  const char* name;
  uint64_t bits;
};
constexpr ElementType element_types[] = {
    {"BOOL", 8},        {"U8", 8},          {"I8", 8},      {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8},
    {"F8_E5M2FNUZ", 8}, {"I16", 16},        {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},
    {"U32", 32},        {"F8_E4M3FNUZ", 8}, {"F32", 32},    {"F64", 64},    {"I64", 64},    {"U64", 64},
    {"C64", 64},        {"F4", 4},          {"F6_E2M3", 6}, {"F6_E3M2", 6},
};

const ElementType* find_type(std::string_view name) {
  for (const ElementType& type : element_types) {
    if (name == type.name) return &type;
  }
  return nullptr;
}

// What people have most often in the place of a model file, told by its first bytes.
const char* way_out(std::string_view file) {
  const auto begins = [file](std::string_view with) { return file.substr(0, with.size()) == with; };
  if (begins("version https://git-lfs")) return " This is a Git LFS pointer: run `git lfs pull` to get the weights.";
  if (begins("GGUF")) return " This is a GGUF file: cria reads safetensors.";
  if (begins("PK\x03\x04") || begins("\x80\x02")) return " This is a PyTorch checkpoint: convert it to safetensors.";
  if (begins("<!") || begins("<htm") || begins("<?xml"))
    return " This is a web page: check the address and download it again.";
  return download_again;
}

std::string shape_of(const TensorInfo& tensor) {
  std::string text = "[";
  for (int64_t dim : tensor.shape) text += (text.size() > 1 ? ", " : "") + std::to_string(dim);
  return text + "]";
}

const char* name_of(JsonReader::Type type) {
  switch (type) {
    case JsonReader::Type::object:
      return "an object";
    case JsonReader::Type::array:
      return "an array";
    case JsonReader::Type::string:
      return "a string";
    case JsonReader::Type::number:
      return "a number";
    case JsonReader::Type::literal:
      return "true, false or null";
  }
  return "";
}

[[noreturn]] void duplicate_key(const std::string& where, std::string_view key) {
  fail("ERR_SAFETENSORS_DUPLICATE_KEY", where, ": the key ", json_quoted(key), " appears twice.", write_again);
}

// Reads the header of one file. Every check names what it looks at, so each step takes the `where` of its message.
class HeaderReader {
 public:
  HeaderReader(std::string_view header, const std::string& path)
      : path_(path),
        json_(header, "ERR_SAFETENSORS_HEADER_JSON",
              path + ": the header is not valid JSON, download the file again: ") {}

  std::vector<TensorInfo> read() {
    std::vector<TensorInfo> tensors;
    bool has_metadata = false;
    std::string name;
    json_.begin_object();
    while (json_.next_key(name)) {
      if (name == "__metadata__") {
        if (has_metadata) duplicate_key(path_, name);
        has_metadata = true;
        check_metadata();
        continue;
      }
      if (tensors.size() == max_tensors) {
        fail("ERR_SAFETENSORS_TOO_MANY_TENSORS", path_, ": the header lists more than ", max_tensors,
             " tensors. Split the model into several files.");
      }
      tensors.push_back(read_tensor(std::move(name)));
    }
    const std::string_view rest = json_.rest();
    const size_t garbage = rest.find_first_not_of(' ');
    if (garbage != std::string_view::npos) {
      fail("ERR_SAFETENSORS_HEADER_JSON", path_, ": expected nothing but spaces after the header's last '}', found ",
           json_quoted(rest.substr(garbage), 40), " at byte ", json_.position() + garbage, " of the header.",
           write_again);
    }
    return tensors;
  }

 private:
  void expect(JsonReader::Type type, const char* code, const std::string& where) {
    const JsonReader::Type found = json_.peek();
    if (found != type) fail(code, where, ": expected ", name_of(type), ", found ", name_of(found), ".", write_again);
  }

  void check_metadata() {
    const char* code = "ERR_SAFETENSORS_METADATA";
    const std::string where = path_ + ": __metadata__";
    std::vector<std::string> keys;
    std::string key;
    expect(JsonReader::Type::object, code, where);
    json_.begin_object();
    while (json_.next_key(key)) {
      if (keys.size() == max_tensors) fail(code, where, ": more than ", max_tensors, " entries.", write_again);
      expect(JsonReader::Type::string, code, where + ": " + json_quoted(key));
      json_.string();
      keys.push_back(std::move(key));
    }
    std::sort(keys.begin(), keys.end());
    const auto twice = std::adjacent_find(keys.begin(), keys.end());
    if (twice != keys.end()) duplicate_key(where, *twice);
  }

  TensorInfo read_tensor(std::string name) {
    TensorInfo tensor;
    tensor.name = std::move(name);
    const std::string where = path_ + ": tensor " + json_quoted(tensor.name);
    const ElementType* type = nullptr;
    bool has_shape = false;
    std::optional<uint64_t> end;
    std::string field;
    expect(JsonReader::Type::object, "ERR_SAFETENSORS_FIELD", where);
    json_.begin_object();
    while (json_.next_key(field)) {
      if (field == "dtype") {
        if (type != nullptr) duplicate_key(where, field);
        type = read_dtype(where + ": dtype");
      } else if (field == "shape") {
        if (has_shape) duplicate_key(where, field);
        has_shape = true;
        tensor.shape = read_shape(where + ": shape");
      } else if (field == "data_offsets") {
        if (end.has_value()) duplicate_key(where, field);
        end = read_offsets(tensor, where + ": data_offsets");
      } else {
        fail("ERR_SAFETENSORS_FIELD", where, ": unknown field ", json_quoted(field),
             ", expected dtype, shape and data_offsets.", write_again);
      }
    }
    if (type == nullptr || !has_shape || !end.has_value()) {
      fail("ERR_SAFETENSORS_FIELD", where, ": ",
           type == nullptr ? "dtype"
           : !has_shape    ? "shape"
                           : "data_offsets",
           " is missing.", write_again);
    }
    tensor.dtype = type->name;
    tensor.bytes = byte_size(tensor, *type, where);
    if (*end - tensor.begin != tensor.bytes) {
      fail("ERR_SAFETENSORS_SIZE", where, ": dtype ", type->name, " and shape ", shape_of(tensor), " need ",
           tensor.bytes, " bytes, but data_offsets [", tensor.begin, ", ", *end, "] hold ", *end - tensor.begin, ".",
           download_again);
    }
    return tensor;
  }

  const ElementType* read_dtype(const std::string& where) {
    expect(JsonReader::Type::string, "ERR_SAFETENSORS_DTYPE", where);
    const std::string name = json_.string();
    const ElementType* type = find_type(name);
    if (type != nullptr) return type;
    fail("ERR_SAFETENSORS_DTYPE", where, ": unknown type ", json_quoted(name),
         ", expected one of the format's, like \"BF16\" or \"F32\".");
  }

  uint64_t read_number(const char* code, const std::string& where) {
    expect(JsonReader::Type::number, code, where);
    const JsonReader::Number number = json_.number();
    if (number.kind == JsonReader::Number::Kind::whole) return number.value;
    const bool large = number.kind == JsonReader::Number::Kind::too_large;
    fail(large ? "ERR_SAFETENSORS_OVERFLOW" : code, where, ": expected a whole number ",
         large ? "below 2^64" : "that is not negative", ", found ", number.text.substr(0, 40),
         number.text.size() > 40 ? "..." : "", ".", download_again);
  }

  std::vector<int64_t> read_shape(const std::string& where) {
    std::array<int64_t, max_rank> dims;
    size_t rank = 0;
    expect(JsonReader::Type::array, "ERR_SAFETENSORS_SHAPE", where);
    json_.begin_array();
    while (json_.next_element()) {
      if (rank == max_rank) {
        fail("ERR_SAFETENSORS_SHAPE", where, ": expected at most ", max_rank, " dimensions, found more.");
      }
      const uint64_t dim = read_number("ERR_SAFETENSORS_SHAPE", where);
      if (dim > INT64_MAX) fail("ERR_SAFETENSORS_OVERFLOW", where, ": ", dim, " is not below 2^63.", download_again);
      dims[rank++] = static_cast<int64_t>(dim);
    }
    return {dims.begin(), dims.begin() + rank};
  }

  // Sets tensor.begin, returns the end.
  uint64_t read_offsets(TensorInfo& tensor, const std::string& where) {
    const char* code = "ERR_SAFETENSORS_OFFSETS";
    const auto wrong_count = [&] { fail(code, where, ": expected two numbers, [begin, end].", write_again); };
    expect(JsonReader::Type::array, code, where);
    json_.begin_array();
    if (!json_.next_element()) wrong_count();
    tensor.begin = read_number(code, where);
    if (!json_.next_element()) wrong_count();
    const uint64_t end = read_number(code, where);
    if (json_.next_element()) wrong_count();
    if (tensor.begin > end)
      fail(code, where, ": begins at ", tensor.begin, ", behind its end ", end, ".", download_again);
    return end;
  }

  static uint64_t byte_size(const TensorInfo& tensor, const ElementType& type, const std::string& where) {
    uint64_t bits = type.bits;
    bool overflow = false;
    // The elements first: [2^62, 8, 0] counts as an overflow too, as in the reference implementation.
    uint64_t elements = 1;
    for (int64_t dim : tensor.shape)
      overflow |= __builtin_mul_overflow(elements, static_cast<uint64_t>(dim), &elements);
    if (overflow || __builtin_mul_overflow(elements, type.bits, &bits)) {
      fail("ERR_SAFETENSORS_OVERFLOW", where, ": shape ", shape_of(tensor), " of ", type.name,
           " is larger than 2^64 bits.", download_again);
    }
    if (bits % 8 != 0) {
      fail("ERR_SAFETENSORS_SHAPE", where, ": shape ", shape_of(tensor), " of ", type.name, " ends inside a byte.");
    }
    return bits / 8;
  }

  const std::string& path_;
  JsonReader json_;
};

std::string_view find_header(std::string_view file, const std::string& path) {
  if (file.size() < length_bytes) {
    fail("ERR_SAFETENSORS_HEADER_TOO_SMALL", path, ": expected at least ", length_bytes, " bytes, found ", file.size(),
         ".", download_again);
  }
  uint64_t length = 0;
  for (size_t i = length_bytes; i-- > 0;) length = length << 8 | static_cast<uint8_t>(file[i]);
  if (length > max_header_bytes) {
    fail("ERR_SAFETENSORS_HEADER_TOO_LARGE", path, ": expected a header of at most ", max_header_bytes,
         " bytes, found a length of ", length, ".", way_out(file));
  }
  if (length == 0 || length > file.size() - length_bytes) {
    fail("ERR_SAFETENSORS_HEADER_LENGTH", path, ": expected a header of 1 to ", file.size() - length_bytes,
         " bytes, as the file has ", file.size(), ", found a length of ", length, ".", way_out(file));
  }
  const std::string_view header = file.substr(length_bytes, length);
  const size_t invalid = find_invalid_utf8(header);
  if (invalid != header.size()) {
    fail("ERR_SAFETENSORS_HEADER_UTF8", path, ": the header is not valid UTF-8 at its byte ", invalid, ".",
         way_out(file));
  }
  if (header[0] != '{') {
    fail("ERR_SAFETENSORS_HEADER_JSON", path, ": expected the header to begin with '{', found ",
         json_quoted(header.substr(0, 40)), ".", way_out(file));
  }
  return header;
}

void check_names(std::vector<TensorInfo>& tensors, const std::string& path) {
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  const auto twice =
      std::adjacent_find(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) { return a.name == b.name; });
  if (twice != tensors.end()) duplicate_key(path, twice->name);
}

// Sorts the tensors by their data and checks that they cover data_bytes exactly, each byte once.
void check_layout(std::vector<TensorInfo>& tensors, uint64_t data_bytes, const std::string& path) {
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    return std::tie(a.begin, a.bytes, a.name) < std::tie(b.begin, b.bytes, b.name);
  });
  uint64_t end = 0;
  const TensorInfo* previous = nullptr;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.begin < end) {
      fail("ERR_SAFETENSORS_OVERLAP", path, ": tensor ", json_quoted(tensor.name), " begins at ", tensor.begin,
           ", inside tensor ", json_quoted(previous->name), ", which ends at ", end, ".", download_again);
    }
    if (tensor.begin > end) {
      fail("ERR_SAFETENSORS_HOLE", path, ": bytes ", end, " to ", tensor.begin, " of the data, before tensor ",
           json_quoted(tensor.name), ", belong to no tensor.", download_again);
    }
    end = tensor.begin + tensor.bytes;
    previous = &tensor;
  }
  if (end > data_bytes) {
    fail("ERR_SAFETENSORS_TRUNCATED", path, ": tensor ", json_quoted(previous->name), " ends at byte ", end,
         " of the data, but the file has only ", data_bytes, ", so ", end - data_bytes,
         " are missing. The download was cut off: download it again.");
  }
  if (end < data_bytes) {
    fail("ERR_SAFETENSORS_TRAILING_BYTES", path, ": expected ", end, " bytes of data, found ", data_bytes,
         ": the last ", data_bytes - end, " belong to no tensor.", download_again);
  }
}

}  // namespace

std::vector<TensorInfo> parse_safetensors(const std::byte* file, uint64_t size, const std::string& path) {
  const std::string_view header = find_header({reinterpret_cast<const char*>(file), size}, path);
  std::vector<TensorInfo> tensors = HeaderReader(header, path).read();
  check_names(tensors, path);
  const uint64_t data_begin = length_bytes + header.size();
  check_layout(tensors, size - data_begin, path);
  for (TensorInfo& tensor : tensors) {
    tensor.data = file + data_begin + tensor.begin;
    const uint64_t element = std::max<uint64_t>(find_type(tensor.dtype)->bits / 8, 1);
    tensor.aligned = reinterpret_cast<uintptr_t>(tensor.data) % element == 0;
  }
  return tensors;
}

Safetensors::Safetensors(const std::string& path)
    : file_(path), tensors_(parse_safetensors(file_.data(), file_.size(), path)) {}

std::shared_ptr<const Safetensors> Safetensors::open(const std::string& path) {
  return std::shared_ptr<const Safetensors>(new Safetensors(path));
}

const TensorInfo* Safetensors::find(std::string_view name) const {
  const auto found = std::find_if(tensors_.begin(), tensors_.end(), [name](const auto& t) { return t.name == name; });
  return found == tensors_.end() ? nullptr : &*found;
}

}  // namespace cria

// error.h - the one exception of the native code. A code that programs test, a sentence that people read.
#pragma once
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace cria {

// code: ERR_... as listed in lib/errors.ts, which turns it into the typed class that users see.
struct Error : std::runtime_error {
  std::string code;
  Error(std::string name, const std::string& message) : std::runtime_error(message), code(std::move(name)) {}
};

// concat("weight is ", 3, " rows") -> "weight is 3 rows"
template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <class... Parts>
[[noreturn]] void fail(const char* code, const Parts&... parts) {
  throw Error(code, concat(parts...));
}

}  // namespace cria

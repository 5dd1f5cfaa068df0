// json.h - a strict JSON pull reader, as much of it as a safetensors header needs.
//
// The caller drives: it asks for what it expects next, so a text that nests differently is refused where it differs,
// and nothing here recurses. Keys come in the order of the text, duplicates included: whether they are an error is the
// caller's to say. Numbers are uint64_t or refused; none goes through a double, which would round 2^53 + 1.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace cria {

// Position of the first byte that is not well-formed UTF-8, or text.size(). Overlong forms, surrogates and anything
// above U+10FFFF are not well-formed.
size_t find_invalid_utf8(std::string_view text);

// text as a JSON string literal, for messages: control characters escaped, cut to limit bytes between two characters.
std::string json_quoted(std::string_view text, size_t limit = 120);

class JsonReader {
 public:
  enum class Type : uint8_t { object, array, string, number, literal };

  struct Number {
    enum class Kind : uint8_t {
      whole,
      too_large,
      other
    };  // 0 .. 2^64 - 1; an integer above; negative, fraction, exponent
    Kind kind = Kind::whole;
    uint64_t value = 0;     // of a whole number
    std::string_view text;  // as written
  };

  // text is well-formed UTF-8 and outlives the reader. What is not JSON throws Error(code, context + what is wrong
  // where).
  JsonReader(std::string_view text, const char* code, std::string context)
      : text_(text), code_(code), context_(std::move(context)) {}

  Type peek();  // the type of the value that begins here

  void begin_object();
  bool next_key(std::string& key);  // false: the object has ended
  void begin_array();
  bool next_element();  // false: the array has ended
  std::string string();
  Number number();

  std::string_view rest() const { return text_.substr(at_); }
  size_t position() const { return at_; }

 private:
  static constexpr size_t max_depth = 8;

  [[noreturn]] void unexpected(const char* expected) const;
  int next_char();  // the next character that is not white space, -1 at the end; stays there
  void take(char c, const char* expected);
  void open(char bracket, const char* expected);
  bool next_member(char bracket);
  size_t digits();
  uint32_t hex4();
  void append_escape(std::string& out);

  std::string_view text_;
  size_t at_ = 0;
  size_t depth_ = 0;
  std::array<bool, max_depth> begun_{};  // by depth: has a member been read, so that a comma comes before the next one?
  const char* code_;
  std::string context_;
};

}  // namespace cria

#include "json.h"

#include <algorithm>

#include "error.h"

namespace cria {
namespace {

uint8_t byte_at(std::string_view text, size_t i) { return static_cast<uint8_t>(text[i]); }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Length of the character at i, 0 when it is not well-formed. What the first byte says bounds the second one; this is
// where overlong forms (C0, C1, E0 80, F0 80), surrogates (ED A0) and everything above U+10FFFF (F4 90, F5) drop out.
size_t utf8_length(std::string_view text, size_t i) {
  const uint8_t first = byte_at(text, i);
  if (first < 0x80) return 1;
  if (first < 0xc2 || first > 0xf4) return 0;
  const size_t length = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
  if (text.size() - i < length) return 0;
  const uint8_t low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
  const uint8_t high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
  if (byte_at(text, i + 1) < low || byte_at(text, i + 1) > high) return 0;
  for (size_t k = 2; k < length; k++) {
    if ((byte_at(text, i + k) & 0xc0) != 0x80) return 0;
  }
  return length;
}

void append_utf8(std::string& out, uint32_t point) {
  const auto append = [&out](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  const auto append_tail = [&](int shift) { append(0x80 | ((point >> shift) & 0x3f)); };
  if (point < 0x80) return append(point);
  if (point < 0x800) {
    append(0xc0 | (point >> 6));
  } else if (point < 0x10000) {
    append(0xe0 | (point >> 12));
    append_tail(6);
  } else {
    append(0xf0 | (point >> 18));
    append_tail(12);
    append_tail(6);
  }
  append_tail(0);
}

}  // namespace

size_t find_invalid_utf8(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    const size_t length = utf8_length(text, i);
    if (length == 0) return i;
    i += length;
  }
  return i;
}

std::string json_quoted(std::string_view text, size_t limit) {
  constexpr const char* hex = "0123456789abcdef";
  std::string out = "\"";
  size_t i = 0;
  while (i < text.size()) {
    const size_t length = utf8_length(text, i);
    if (i + std::max<size_t>(length, 1) > limit) break;
    const uint8_t byte = byte_at(text, i);
    if (length == 0) {
      out += "\xef\xbf\xbd";  // U+FFFD for a byte that is not UTF-8
    } else if (byte < 0x20 || byte == 0x7f) {
      out += "\\u00";
      out += hex[byte >> 4];
      out += hex[byte & 15];
    } else {
      if (byte == '"' || byte == '\\') out += '\\';
      out += text.substr(i, length);
    }
    i += std::max<size_t>(length, 1);
  }
  if (i < text.size()) out += "...";
  return out + '"';
}

void JsonReader::unexpected(const char* expected) const {
  const std::string found =
      at_ < text_.size() ? json_quoted(text_.substr(at_, std::max<size_t>(utf8_length(text_, at_), 1))) : "the end";
  fail(code_, context_, "expected ", expected, " at byte ", at_, " of the header, found ", found, ".");
}

int JsonReader::next_char() {
  while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r'))
    at_++;
  return at_ < text_.size() ? byte_at(text_, at_) : -1;
}

void JsonReader::take(char c, const char* expected) {
  if (next_char() != c) unexpected(expected);
  at_++;
}

JsonReader::Type JsonReader::peek() {
  const int c = next_char();
  if (c == '{') return Type::object;
  if (c == '[') return Type::array;
  if (c == '"') return Type::string;
  if (c == '-' || (c >= '0' && c <= '9')) return Type::number;
  for (std::string_view literal : {"true", "false", "null"}) {
    if (rest().substr(0, literal.size()) == literal) return Type::literal;
  }
  unexpected("a value");
}

void JsonReader::open(char bracket, const char* expected) {
  if (depth_ == max_depth) fail(code_, context_, "nested deeper than ", max_depth, " at byte ", at_, " of the header.");
  take(bracket, expected);
  begun_[depth_++] = false;
}

bool JsonReader::next_member(char bracket) {
  bool& begun = begun_[depth_ - 1];
  if (next_char() == bracket) {
    at_++;
    depth_--;
    return false;
  }
  if (begun) take(',', bracket == '}' ? "',' or '}'" : "',' or ']'");
  begun = true;
  return true;
}

void JsonReader::begin_object() { open('{', "'{'"); }
void JsonReader::begin_array() { open('[', "'['"); }

bool JsonReader::next_key(std::string& key) {
  if (!next_member('}')) return false;
  key = string();
  take(':', "':'");
  return true;
}

bool JsonReader::next_element() { return next_member(']'); }

std::string JsonReader::string() {
  take('"', "'\"'");
  size_t end = at_;
  bool escaped = false;
  while (end < text_.size() && text_[end] != '"') {
    if (byte_at(text_, end) < 0x20) {
      at_ = end;
      unexpected("no control character in a string");
    }
    escaped |= text_[end] == '\\';
    end += size_t{text_[end] == '\\' ? 2u : 1u};
  }
  if (end >= text_.size()) {
    at_ = text_.size();
    unexpected("'\"'");
  }
  std::string out;
  if (escaped) {
    out.reserve(end - at_);  // no escape is shorter than what it stands for, so this is the only allocation
    while (at_ < end) {
      if (text_[at_] == '\\') {
        append_escape(out);
      } else {
        out.push_back(text_[at_++]);
      }
    }
  } else {
    out = text_.substr(at_, end - at_);
  }
  at_ = end + 1;
  return out;
}

void JsonReader::append_escape(std::string& out) {
  constexpr std::string_view letters = "\"\\/bfnrt";
  constexpr std::string_view meanings = "\"\\/\b\f\n\r\t";
  at_++;
  const size_t letter = letters.find(text_[at_]);
  if (letter != std::string_view::npos) {
    at_++;
    out.push_back(meanings[letter]);
    return;
  }
  if (text_[at_] != 'u') unexpected("one of \"\\/bfnrtu after a backslash");
  uint32_t point = hex4();
  if (point >= 0xdc00 && point <= 0xdfff) unexpected("a high surrogate before a low one");
  if (point >= 0xd800 && point <= 0xdbff) {
    if (rest().substr(0, 2) != "\\u") unexpected("a low surrogate");
    at_++;
    const uint32_t low = hex4();
    if (low < 0xdc00 || low > 0xdfff) unexpected("a low surrogate");
    point = 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00);
  }
  append_utf8(out, point);
}

// At the 'u' of \uXXXX; ends behind it.
uint32_t JsonReader::hex4() {
  at_++;
  uint32_t value = 0;
  for (int i = 0; i < 4; i++, at_++) {
    const char c = at_ < text_.size() ? text_[at_] : '"';
    const char lower = static_cast<char>(c | 0x20);
    if (is_digit(c)) {
      value = value * 16 + static_cast<uint32_t>(c - '0');
    } else if (lower >= 'a' && lower <= 'f') {
      value = value * 16 + static_cast<uint32_t>(lower - 'a' + 10);
    } else {
      unexpected("four hexadecimal digits after \\u");
    }
  }
  return value;
}

size_t JsonReader::digits() {
  const size_t begin = at_;
  while (at_ < text_.size() && is_digit(text_[at_])) at_++;
  if (at_ == begin) unexpected("a digit");
  return at_ - begin;
}

JsonReader::Number JsonReader::number() {
  next_char();
  const size_t begin = at_;
  const auto next_is = [this](char c) { return at_ < text_.size() && text_[at_] == c; };
  Number out;
  if (next_is('-')) {
    out.kind = Number::Kind::other;
    at_++;
  }
  const bool leading_zero = next_is('0');
  const size_t length = digits();
  if (leading_zero && length > 1) {
    at_ -= length - 1;
    unexpected("no digit after a leading zero");
  }
  for (char c : text_.substr(at_ - length, length)) {
    if (out.kind != Number::Kind::whole) break;
    if (__builtin_mul_overflow(out.value, uint64_t{10}, &out.value) ||
        __builtin_add_overflow(out.value, static_cast<uint64_t>(c - '0'), &out.value)) {
      out.kind = Number::Kind::too_large;
    }
  }
  if (next_is('.')) {
    out.kind = Number::Kind::other;
    at_++;
    digits();
  }
  if (next_is('e') || next_is('E')) {
    out.kind = Number::Kind::other;
    at_++;
    if (next_is('+') || next_is('-')) at_++;
    digits();
  }
  out.text = text_.substr(begin, at_ - begin);
  return out;
}

}  // namespace cria

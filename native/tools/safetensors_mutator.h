// safetensors_mutator.h - damages a safetensors file in ways that keep most of it plausible, so that the damage gets
// past the first checks. The same seed gives the same mutants on every machine.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <random>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace cria {

class SafetensorsMutator {
 public:
  SafetensorsMutator(const std::string& base, uint64_t seed) : random_(seed) {
    uint64_t length = 0;
    for (size_t i = std::min<size_t>(8, base.size()); i-- > 0;) length = length << 8 | static_cast<uint8_t>(base[i]);
    const size_t begin = std::min<size_t>(8, base.size());
    header_ = base.substr(begin, length);
    data_ = base.substr(begin + header_.size());
  }

  std::string next() {
    std::string header = header_;
    std::string data = data_;
    for (size_t steps = 1 + below(3); steps > 0; steps--) {
      if (below(8) == 0) {
        damage_data(data);
      } else {
        damage_header(header);
      }
    }
    uint64_t length = header.size();
    if (below(10) == 0) {
      length = pick<uint64_t>({0, 1, length - 1, length + 1, 100'000'001, uint64_t{1} << 63, ~uint64_t{0}, random_()});
    }
    std::string file;
    for (size_t i = 0; i < 8; i++) file += static_cast<char>(length >> (8 * i));
    file += header + data;
    if (below(20) == 0) file.resize(below(file.size() + 1));
    if (below(20) == 0) flip(file);
    return file;
  }

 private:
  struct Span {
    size_t begin, size;
  };

  // Separated by white space, so none of them contains any.
  static std::vector<std::string> words(const std::string& text) {
    std::istringstream in(text);
    return {std::istream_iterator<std::string>(in), {}};
  }

  size_t below(size_t n) { return n == 0 ? 0 : random_() % n; }
  template <class T>
  T pick(const std::vector<T>& choices) {
    return choices[below(choices.size())];
  }

  void flip(std::string& text) {
    if (text.empty()) return;
    char& c = text[below(text.size())];
    c = static_cast<char>(c ^ (1 << below(8)));
  }

  // A random quoted string, or a random run of digits outside of strings; the whole text when it has none.
  Span token(const std::string& text, bool quoted) {
    std::vector<Span> found;
    for (size_t i = 0; i < text.size(); i++) {
      const size_t begin = i;
      if (text[i] == '"') {
        i = std::min(text.find('"', i + 1), text.size() - 1);
        if (quoted) found.push_back({begin, i + 1 - begin});
      } else if (text[i] >= '0' && text[i] <= '9') {
        i = std::min(text.find_first_not_of("0123456789", i), text.size()) - 1;
        if (!quoted) found.push_back({begin, i + 1 - begin});
      }
    }
    return found.empty() ? Span{0, text.size()} : found[below(found.size())];
  }

  static std::string part(const std::string& text, Span span) { return text.substr(span.begin, span.size); }
  static void replace(std::string& text, Span span, const std::string& with) {
    text.replace(span.begin, span.size, with);
  }
  static uint64_t number_in(const std::string& text, Span span) {
    return std::strtoull(part(text, span).c_str(), nullptr, 10);
  }

  void damage_data(std::string& data) {
    if (below(2) == 0) {
      data.append(1 + below(9), 'x');
    } else {
      data.resize(data.size() - std::min(data.size(), 1 + below(9)));
    }
  }

  void damage_header(std::string& text) {
    const Span number = token(text, false);
    const Span string = token(text, true);
    const size_t at = below(text.size() + 1);
    const std::vector<uint64_t> distances = {1, ~uint64_t{0}, 4, 8, uint64_t{1} << 32};
    const size_t kind = below(13);
    if (kind == 0) replace(text, number, pick(numbers_));
    if (kind == 1) replace(text, number, part(text, token(text, false)));
    if (kind == 2) replace(text, number, std::to_string(number_in(text, number) + pick(distances)));
    if (kind == 3) replace(text, string, pick(strings_));
    if (kind == 4) replace(text, string, part(text, token(text, true)));
    if (kind == 5) escape(text, string);
    if (kind == 6) insert_member(text, at);
    if (kind == 7) text.insert(at, pick(fragments_));
    if (kind == 8) text.erase(at, 1 + below(below(4) == 0 ? text.size() : 4));
    if (kind == 9) flip(text);
    if (kind == 10) repeat(text, string);
    if (kind == 11) move(text, at, pick(distances));
    if (kind == 12) text.append(1 + below(9), pick<char>({' ', ' ', ' ', '\n', '\0'}));
  }

  // The first character of a string as an escape, which changes nothing.
  static void escape(std::string& text, Span string) {
    const char* hex = "0123456789abcdef";
    const char c = string.size > 2 ? text[string.begin + 1] : '\\';
    if (c < ' ' || c == '\\' || c == '"') return;
    text.replace(string.begin + 1, 1, std::string("\\u00") + hex[c >> 4] + hex[c & 15]);
  }

  // A fragment behind the next '{' or ',', where a member may stand.
  void insert_member(std::string& text, size_t at) {
    const size_t place = text.find_first_of("{,", at);
    text.insert(place == std::string::npos ? text.size() : place + 1, pick(fragments_));
  }

  // A member once more, under its own name.
  static void repeat(std::string& text, Span key) {
    const size_t end = text.find('}', key.begin);
    if (end != std::string::npos) text.insert(1, text.substr(key.begin, end + 1 - key.begin) + ",");
  }

  // Both offsets of the tensor behind `at`: of the right size, in the wrong place.
  static void move(std::string& text, size_t at, uint64_t distance) {
    const std::string_view key = "\"data_offsets\":[";
    const size_t begin = text.find(key, at);
    const size_t end = text.find(']', begin);
    const size_t comma = text.find(',', begin);
    if (begin == std::string::npos || end == std::string::npos || comma > end) return;
    const Span first{begin + key.size(), comma - begin - key.size()};
    const Span second{comma + 1, end - comma - 1};
    const std::string moved =
        std::to_string(number_in(text, first) + distance) + ',' + std::to_string(number_in(text, second) + distance);
    text.replace(first.begin, end - first.begin, moved);
  }

  const std::vector<std::string> numbers_ = words(
      "0 1 -1 -0 7 8 1.0 0.5 1e1 1E400 00 +1 9007199254740993 9223372036854775807 9223372036854775808 \"1\" null [] {} "
      "NaN "
      "4611686018427387904 18446744073709551615 18446744073709551616 340282366920938463463374607431768211456 0x10 1_0 "
      ".");
  const std::vector<std::string> strings_ = words(
      R"("dtype" "shape" "data_offsets" "__metadata__" "__proto__" "" "F32" "F16" "U8" "I64" "F4" "F6_E2M3" "BOOL" "bf16" )"
      R"("Q4_0" "\u0000" "\ud83d\ude00" "\ud83d" "\ude00" "\u00e" "\x" 1 null )"
      "\"\xf0\x9f\xa6\x99\" \"\xc0\x80\" \"\xed\xa0\x80\" \"\xff\" \"\x01\"");
  const std::vector<std::string> fragments_ = words(
      R"({ } [ ] , : " \ /**/ // null "x":1, [[[[[[[[[[[[ {"a":{"a":{"a":{"a":{"a": "__metadata__":{"a":"b"}, )"
      R"("__metadata__":{"a":1}, "__metadata__":{"a":"b","\u0061":"c"}, )"
      R"("x":{"dtype":"U8","shape":[],"data_offsets":[0,1]}, "z":{"dtype":"F32","shape":[3,0],"data_offsets":[0,0]}, )"
      "\xef\xbb\xbf \x01");

  std::mt19937_64 random_;
  std::string header_;
  std::string data_;
};

}  // namespace cria

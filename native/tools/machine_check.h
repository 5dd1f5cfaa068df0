// machine_check.h - cases of machine_check*.cc: a line each, "ok NAME" or "WRONG NAME: why".
#pragma once
#include <iostream>

#include "../machine/simt.h"

namespace cria::simt {

inline bool good = true;
inline void tell(const std::string& name, bool holds, const std::string& why = "") {
  std::cout << (holds ? "ok " : "WRONG ") << name << (holds ? "" : ": " + why) << "\n";
  good = good && holds;
}

// Runs a kernel on every seed, with late and early copies; `holds` looks at what it left.
template <class... P, class... A>
void expect(const std::string& name, void (*kernel)(P...), const Shape& shape, const std::function<bool()>& holds,
            A... arguments) {
  std::string why;
  for (uint64_t seed = 0; seed < 20 && why.empty(); seed++) {
    Options options;
    options.seed = seed / 2;
    options.late = seed % 2 == 0;
    Machine m(options);
    try {
      launch(kernel, name.c_str(), shape, Stream{&m}, arguments...);
      m.drain();
      if (!holds()) why = "another result with " + options.text();
    } catch (const Error& e) {
      why = e.what();
    }
  }
  tell(name, why.empty(), why);
}

// Every seed must end with an error that says `message` and how to repeat it.
template <class... P, class... A>
void refuse(const std::string& name, void (*kernel)(P...), const Shape& shape, const std::string& message,
            A... arguments) {
  std::string why;
  for (uint64_t seed = 0; seed < 20 && why.empty(); seed++) {
    Options options;
    options.seed = seed;
    Machine m(options);
    try {
      launch(kernel, name.c_str(), shape, Stream{&m}, arguments...);
      m.drain();
      why = "nothing was said with " + options.text();
    } catch (const Error& e) {
      const std::string text = e.what();
      if (e.code != "ERR_DEVICE_KERNEL" || text.find(message) == std::string::npos ||
          text.find("CRIA_SIMT=" + options.text()) == std::string::npos)
        why = e.code + " " + text;
    }
  }
  tell(name, why.empty(), why);
}

void check_async();
void check_linear();  // and says how long it takes: "linear took 1.5 ms"

}  // namespace cria::simt

// errors.h - the one place where native errors become JavaScript errors.
#pragma once
#include <napi.h>

#include <exception>

#include "../core/error.h"

namespace cria {

// The JavaScript error for an exception: made by the function that lib/native.ts registered, so that users get its
// typed classes; a plain Error with a `code` before that.
Napi::Value to_js(Napi::Env env, std::exception_ptr error);

// Runs the body of a function that JavaScript called; anything thrown becomes a JavaScript exception.
template <class Body>
auto guard(Napi::Env env, Body body) -> decltype(body()) {
  try {
    return body();
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    throw Napi::Error(env, to_js(env, std::current_exception()));
  }
}

}  // namespace cria

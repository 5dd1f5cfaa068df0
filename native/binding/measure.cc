// measure.cc - Device: promises of what it will have done: its clock, an upload, and what the machine can do.
#include "classes.h"
#include "decode.h"

namespace cria {
namespace {

// A promise of what the device fills in: start(result, done), later to_value(env, result).
template <class Result, class Start, class ToValue>
Napi::Value promise_of(Napi::Env env, const SharedDevice& device, Start start, ToValue to_value) {
  struct Request {
    Napi::Promise::Deferred deferred;
    SharedDevice open;
    Result result;
  };
  Device& d = device->use();
  auto* const request = new Request{Napi::Promise::Deferred::New(env), device, {}};
  const Napi::Promise promise = request->deferred.Promise();
  device->js->wait(env);
  const auto done = [request, to_value, js = device->js.get()](const std::exception_ptr& failure) {
    js->post([request, to_value, failure](Napi::Env now) {
      const std::unique_ptr<Request> r(request);
      r->open->js->done(now);
      if (failure) return r->deferred.Reject(to_js(now, failure));
      r->deferred.Resolve(to_value(now, r->result));
    });
  };
  try {
    start(d, &request->result, done);
  } catch (...) {
    done(std::current_exception());
  }
  return promise;
}

}  // namespace

// clock() -> Promise<seconds>
Napi::Value DeviceClass::clock(const Napi::CallbackInfo& info) {
  return guard(info.Env(), [&]() -> Napi::Value {
    return promise_of<double>(
        info.Env(), device, [](Device& d, double* seconds, Device::Done done) { d.clock(seconds, std::move(done)); },
        [](Napi::Env env, double seconds) { return Napi::Number::New(env, seconds); });
  });
}

// upload(weight) -> Promise<void>
Napi::Value DeviceClass::upload(const Napi::CallbackInfo& info) {
  return guard(info.Env(), [&]() -> Napi::Value {
    device->use();
    Keep keep;
    Arguments a("upload", info, device, keep);
    a.weight(0, "weight");
    return promise_of<double>(
        info.Env(), device, [](Device& d, double* seconds, Device::Done done) { d.clock(seconds, std::move(done)); },
        [](Napi::Env env, double) { return env.Undefined(); });
  });
}

// measure() -> Promise<{ read, copy, flops }>
Napi::Value DeviceClass::measure(const Napi::CallbackInfo& info) {
  return guard(info.Env(), [&]() -> Napi::Value {
    return promise_of<Ceilings>(
        info.Env(), device, [](Device& d, Ceilings* result, Device::Done done) { d.measure(result, std::move(done)); },
        [](Napi::Env env, const Ceilings& ceilings) {
          Napi::Object result = Napi::Object::New(env);
          result.Set("read", ceilings.read);
          result.Set("copy", ceilings.copy);
          result.Set("flops", ceilings.flops);
          return result;
        });
  });
}

// measureLibrary(rows, out, in) -> Promise<{ library, flops } | undefined>
Napi::Value DeviceClass::measure_library(const Napi::CallbackInfo& info) {
  return guard(info.Env(), [&]() -> Napi::Value {
    const auto size = [&](size_t i, const char* name) {
      return whole_number(info[i], concat("measureLibrary: ", name), 1, 1 << 20);
    };
    const int64_t rows = size(0, "rows"), out = size(1, "out"), in = size(2, "in");
    return promise_of<LibraryRate>(
        info.Env(), device,
        [=](Device& d, LibraryRate* result, Device::Done done) {
          d.measure_library(rows, out, in, result, std::move(done));
        },
        [](Napi::Env env, const LibraryRate& rate) -> Napi::Value {
          if (rate.flops == 0) return env.Undefined();
          Napi::Object result = Napi::Object::New(env);
          result.Set("library", rate.library);
          result.Set("flops", rate.flops);
          return result;
        });
  });
}

}  // namespace cria

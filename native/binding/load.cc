// load.cc - Device.weights: opens, checks and (for the CPU) reads ahead safetensors files on a thread of its own.
#include <atomic>
#include <cmath>
#include <map>
#include <thread>

#include "../core/safetensors.h"
#include "classes.h"
#include "decode.h"

namespace cria {
namespace {

// One call of weights(): lives until its promise is settled.
struct Load {
  explicit Load(Napi::Env e) : env(e), js(e), deferred(Napi::Promise::Deferred::New(e)) {
    napi_add_env_cleanup_hook(env, end, this);
  }
  ~Load() { napi_remove_env_cleanup_hook(env, end, this); }
  // The environment goes while files are being read: the thread stops, and nobody is left to be told.
  static void end(void* self) {
    Load& load = *static_cast<Load*>(self);
    load.cancelled = true;
    if (load.thread.joinable()) load.thread.join();
  }
  const napi_env env;
  SharedDevice device;
  std::vector<std::string> paths;
  std::vector<std::shared_ptr<const Safetensors>> files;
  JsThread js;
  Napi::Promise::Deferred deferred;
  Napi::FunctionReference on_progress;
  Napi::ObjectReference signal;
  Napi::FunctionReference on_abort;
  Napi::ObjectReference reason;  // under "value": why it was aborted, or what onProgress threw; any value
  void cancel(Napi::Value why) {
    const Napi::Object holder = Napi::Object::New(env);
    holder.Set("value", why);
    reason = Napi::Persistent(holder);
    cancelled = true;
  }
  std::atomic<bool> cancelled{false};
  std::exception_ptr failure;
  std::thread thread;
};

void open_files(Load& load) {
  uint64_t total = 0, before = 0;
  for (const std::string& path : load.paths) {
    load.files.push_back(Safetensors::open(path));
    total += load.files.back()->size();
  }
  // What goes into memory of the device's own is read when it is uploaded.
  if (std::isfinite(load.device->device->free_memory())) return;
  for (const auto& file : load.files) {
    file->prefetch([&](uint64_t bytes, uint64_t) {
      load.js.post([&load, done = before + bytes, total](Napi::Env env) {
        if (load.on_progress.IsEmpty() || load.cancelled) return;
        try {
          load.on_progress.Call({Napi::Number::New(env, double(done)), Napi::Number::New(env, double(total))});
        } catch (const Napi::Error& e) {
          load.cancel(e.Value());
        }
      });
      return !load.cancelled;
    });
    before += file->size();
  }
}

// Tensor name -> Weight. A bf16 tensor whose bytes do not lie on an even address is copied.
Napi::Value to_map(Napi::Env env, const Load& load) {
  Device& device = load.device->use();
  const Napi::Object map = env.Global().Get("Map").As<Napi::Function>().New({});
  const Napi::Function set = map.Get("set").As<Napi::Function>();
  std::map<std::string, std::string> seen;
  for (const auto& file : load.files)
    for (const TensorInfo& t : file->tensors()) {
      const auto [first, fresh] = seen.emplace(t.name, file->path());
      if (!fresh)
        fail("ERR_WEIGHTS_DUPLICATE", file->path(), ": tensor ", t.name, " is also in ", first->second,
             "; every tensor may be in one file only");
      auto handle = std::make_shared<WeightHandle>();
      handle->held_by(load.device, 0);
      handle->dtype = t.dtype;
      handle->shape = t.shape;
      handle->file = file->path();
      const int rank = int(t.shape.size());
      if (handle->dtype == "BF16" && (rank == 1 || rank == 2) && t.bytes > 0) {
        const int64_t rows = rank == 2 ? t.shape[0] : 1, cols = t.shape.back();
        if (t.aligned) {
          handle->weight = device.adopt(reinterpret_cast<const bf16*>(t.data), rank, rows, cols, file);
        } else {
          auto copy = std::make_shared<std::vector<bf16>>(size_t(rows * cols));
          std::memcpy(static_cast<void*>(copy->data()), t.data, t.bytes);
          handle->weight = device.adopt(copy->data(), rank, rows, cols, copy);
        }
      }
      set.Call(map, {Napi::String::New(env, t.name), WeightClass::make(Addon::of(env).weight, handle)});
    }
  return map;
}

void settle(Napi::Env env, Load* raw) {
  const std::unique_ptr<Load> load(raw);
  load->thread.join();
  load->js.done(env);
  if (!load->signal.IsEmpty()) {
    const Napi::Object signal = load->signal.Value();
    signal.Get("removeEventListener")
        .As<Napi::Function>()
        .Call(signal, {Napi::String::New(env, "abort"), load->on_abort.Value()});
  }
  try {
    if (!load->reason.IsEmpty()) {
      load->deferred.Reject(load->reason.Get("value"));
    } else if (load->failure) {
      std::rethrow_exception(load->failure);
    } else {
      load->deferred.Resolve(to_map(env, *load));
    }
  } catch (...) {
    load->deferred.Reject(to_js(env, std::current_exception()));
  }
}

}  // namespace

// weights(files, { onProgress, signal })
Napi::Value load_weights(const Napi::CallbackInfo& info, SharedDevice device) {
  Napi::Env env = info.Env();
  auto load = std::make_unique<Load>(env);
  load->device = std::move(device);
  if (!info[0].IsArray()) fail("ERR_ARGUMENT", "weights: files is not an array of paths");
  const Napi::Array files = info[0].As<Napi::Array>();
  for (uint32_t i = 0; i < files.Length(); i++) {
    if (!files.Get(i).IsString()) fail("ERR_ARGUMENT", "weights: files[", i, "] is not a path");
    load->paths.push_back(files.Get(i).As<Napi::String>().Utf8Value());
  }
  if (info[1].IsObject()) {
    const Napi::Object options = info[1].As<Napi::Object>();
    if (options.Get("onProgress").IsFunction())
      load->on_progress = Napi::Persistent(options.Get("onProgress").As<Napi::Function>());
    if (options.Get("signal").IsObject()) {
      const Napi::Object signal = options.Get("signal").As<Napi::Object>();
      if (!signal.Get("addEventListener").IsFunction()) fail("ERR_ARGUMENT", "weights: signal is not an AbortSignal");
      if (signal.Get("aborted").ToBoolean()) {
        load->deferred.Reject(signal.Get("reason"));
        return load->deferred.Promise();
      }
      load->signal = Napi::Persistent(signal);
      load->on_abort = Napi::Persistent(Napi::Function::New(
          env, [l = load.get()](const Napi::CallbackInfo&) { l->cancel(l->signal.Get("reason")); }));
      signal.Get("addEventListener")
          .As<Napi::Function>()
          .Call(signal, {Napi::String::New(env, "abort"), load->on_abort.Value()});
    }
  }
  Load* const l = load.release();
  l->js.wait(env);
  l->thread = std::thread([l] {
    try {
      open_files(*l);
    } catch (...) {
      l->failure = std::current_exception();
    }
    l->js.post([l](Napi::Env now) { settle(now, l); });
  });
  return l->deferred.Promise();
}

}  // namespace cria

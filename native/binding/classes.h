// classes.h - the JavaScript classes, and the handles behind them. Every object carries a type tag.
#pragma once
#include <napi.h>

#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "../devices/device.h"
#include "errors.h"
#include "js_thread.h"

namespace cria {

// Something that keeps memory of a device. Closing the device lets go of it, however many objects still stand for it;
// V8 knows how much it is, so that forgotten ones are collected in time.
class Held {
 public:
  Held() = default;
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  virtual ~Held();
  virtual void release() = 0;  // forget everything in the device's memory

 protected:
  void held_by(std::shared_ptr<struct OpenDevice> open, size_t bytes);
  void let_go();  // of the account; for the end of release()

 public:
  std::shared_ptr<struct OpenDevice> device;

 private:
  int64_t bytes_ = 0;
};

// An open device, shared by everything made on it. The last owner must be on the JavaScript thread.
struct OpenDevice {
  OpenDevice(Napi::Env e, std::unique_ptr<Device> d) : env(e), device(std::move(d)), js(std::make_unique<JsThread>(e)) {
    // The environment waits for the device's threads before it goes: they must not call into it later. Hooks run in
    // reverse order, so this one comes before the one that ends `js`.
    napi_add_env_cleanup_hook(env, end, this);
  }
  ~OpenDevice() {
    napi_remove_env_cleanup_hook(env, end, this);
    device->close();
  }
  OpenDevice(const OpenDevice&) = delete;
  OpenDevice& operator=(const OpenDevice&) = delete;

  Device& use() const {
    if (closed) fail("ERR_CLOSED", device->name(), ": the device was closed");
    return *device;
  }
  void close() {
    closed = true;
    device->close();
    while (!held.empty()) {
      Held* const first = *held.begin();
      held.erase(held.begin());
      first->release();
    }
  }

  const napi_env env;
  const std::unique_ptr<Device> device;
  std::unique_ptr<JsThread> js;
  bool closed = false;
  std::unordered_set<Held*> held;

 private:
  static void end(void* self) {
    static_cast<OpenDevice*>(self)->close();
    static_cast<OpenDevice*>(self)->js.reset();
  }
};
using SharedDevice = std::shared_ptr<OpenDevice>;

// What a DeviceTensor stands for.
struct TensorHandle : Held {
  enum class State { memory, recorded, result, ended, disposed };
  State state = State::memory;
  Tensor tensor;
  std::shared_ptr<Buffer> buffer;    // memory
  const void* recording = nullptr;   // recorded: which recording
  std::shared_ptr<Program> program;  // result
  size_t result = 0;                 // result: which one

  // The tensor with its address as of now, and what must stay alive while it is used.
  Tensor resolve(std::shared_ptr<const void>& keep, const char* name) const;
  void release() override {
    if (state != State::recorded && state != State::ended) state = State::disposed;
    buffer.reset();
    program.reset();
    let_go();
  }
  using Held::held_by;
};

struct WeightHandle : Held {
  SharedWeight weight;  // null when the element type is not bf16
  std::string dtype;    // as the file says: BF16, F16, ...
  std::vector<int64_t> shape;
  std::string file;

  void release() override {
    weight.reset();
    let_go();
  }
  using Held::held_by;
};

// State of one JavaScript environment (the main thread or a worker).
struct Addon {
  explicit Addon(Napi::Env env, Napi::Object exports);
  Napi::FunctionReference device, tensor, weight, recorder, program;  // constructors
  Napi::FunctionReference make_error;                                 // (code, message) => Error
  static Addon& of(Napi::Env env) { return *env.GetInstanceData<Addon>(); }
};

// A wrapped C++ object that only native code can construct: the constructor wants an External.
template <class Self>
class Wrapped : public Napi::ObjectWrap<Self> {
 public:
  explicit Wrapped(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Self>(info) {
    if (info.Length() != 1 || !info[0].IsExternal())
      throw Napi::Error(
          info.Env(),
          to_js(info.Env(), std::make_exception_ptr(Error(
                                "ERR_ARGUMENT", concat("a ", Self::kName, " is made by open() and what it returns")))));
    info.This().As<Napi::Object>().TypeTag(&Self::kTag);
  }
  // V8 checks the receiver of methods, but not of accessors: every getter begins with this, before it touches a member.
  static void receiver(const Napi::CallbackInfo& info) {
    if (!from(info.This())) throw Napi::TypeError::New(info.Env(), "Illegal invocation");
  }
  // nullptr when the value is something else.
  static Self* from(const Napi::Value& value) {
    if (!value.IsObject() || !value.As<Napi::Object>().CheckTypeTag(&Self::kTag)) return nullptr;
    return Self::Unwrap(value.As<Napi::Object>());
  }
  template <class T>
  static Napi::Object make(Napi::FunctionReference& constructor, T& payload) {
    return constructor.New({Napi::External<T>::New(constructor.Env(), &payload)});
  }

 protected:
  template <class T>
  static T& payload(const Napi::CallbackInfo& info) {
    return *info[0].As<Napi::External<T>>().Data();
  }
};

class TensorClass : public Wrapped<TensorClass> {
 public:
  static constexpr const char* kName = "DeviceTensor";
  static constexpr napi_type_tag kTag{0x6a1f0c6d5a3e4b01, 0x9d52c1a70e4f8b31};
  static Napi::Function define(Napi::Env env);
  explicit TensorClass(const Napi::CallbackInfo& info);
  std::shared_ptr<TensorHandle> handle;

 private:
  Napi::Value dtype(const Napi::CallbackInfo&);
  Napi::Value shape(const Napi::CallbackInfo&);
  void dispose(const Napi::CallbackInfo&);
};

class WeightClass : public Wrapped<WeightClass> {
 public:
  static constexpr const char* kName = "Weight";
  static constexpr napi_type_tag kTag{0x6a1f0c6d5a3e4b02, 0x9d52c1a70e4f8b32};
  static Napi::Function define(Napi::Env env);
  explicit WeightClass(const Napi::CallbackInfo& info);
  std::shared_ptr<WeightHandle> handle;

 private:
  Napi::Value dtype(const Napi::CallbackInfo&);
  Napi::Value shape(const Napi::CallbackInfo&);
  Napi::Value file(const Napi::CallbackInfo&);
};

class RecorderClass : public Wrapped<RecorderClass> {
 public:
  static constexpr const char* kName = "Recorder";
  static constexpr napi_type_tag kTag{0x6a1f0c6d5a3e4b03, 0x9d52c1a70e4f8b33};
  static Napi::Function define(Napi::Env env);
  explicit RecorderClass(const Napi::CallbackInfo& info);

  SharedDevice device;
  std::unique_ptr<Recording> recording;
  Keep keep;
  std::vector<std::shared_ptr<TensorHandle>> handles;  // of everything recorded
  bool ended = false;

 private:
  Napi::Value embed(const Napi::CallbackInfo&);
  Napi::Value rms_norm(const Napi::CallbackInfo&);
  Napi::Value linear(const Napi::CallbackInfo&);
  Napi::Value rope_append(const Napi::CallbackInfo&);
  Napi::Value attention(const Napi::CallbackInfo&);
  Napi::Value swiglu(const Napi::CallbackInfo&);
  Napi::Value select_rows(const Napi::CallbackInfo&);
  Napi::Value adjust(const Napi::CallbackInfo&);
  Napi::Value sample(const Napi::CallbackInfo&);
  Napi::Value logprobs(const Napi::CallbackInfo&);
  Napi::Object result(Napi::Env env, const Tensor& tensor);
};

class ProgramClass : public Wrapped<ProgramClass>, public Held {
 public:
  static constexpr const char* kName = "Program";
  static constexpr napi_type_tag kTag{0x6a1f0c6d5a3e4b04, 0x9d52c1a70e4f8b34};
  static Napi::Function define(Napi::Env env);
  explicit ProgramClass(const Napi::CallbackInfo& info);
  void release() override {
    program.reset();
    let_go();
  }
  std::shared_ptr<Program> program;
  Napi::ObjectReference outputs;  // holds the value under "value"

 private:
  Napi::Value get_outputs(const Napi::CallbackInfo&);
  Napi::Value cost(const Napi::CallbackInfo&);
  Napi::Value launches(const Napi::CallbackInfo&);
  Napi::Value memory(const Napi::CallbackInfo&);
  void run(const Napi::CallbackInfo&);
  void dispose(const Napi::CallbackInfo&);
};

class DeviceClass : public Wrapped<DeviceClass> {
 public:
  static constexpr const char* kName = "Device";
  static constexpr napi_type_tag kTag{0x6a1f0c6d5a3e4b05, 0x9d52c1a70e4f8b35};
  static Napi::Function define(Napi::Env env);
  explicit DeviceClass(const Napi::CallbackInfo& info);
  SharedDevice device;

 private:
  Napi::Value name(const Napi::CallbackInfo&);
  Napi::Value description(const Napi::CallbackInfo&);
  Napi::Value activation(const Napi::CallbackInfo&);
  Napi::Value tensor(const Napi::CallbackInfo&);
  void write(const Napi::CallbackInfo&);
  Napi::Value read(const Napi::CallbackInfo&);
  Napi::Value free_memory(const Napi::CallbackInfo&);
  Napi::Value weights(const Napi::CallbackInfo&);
  Napi::Value upload(const Napi::CallbackInfo&);
  Napi::Value stack(const Napi::CallbackInfo&);
  Napi::Value random(const Napi::CallbackInfo&);
  void copy_pages(const Napi::CallbackInfo&);
  Napi::Value record(const Napi::CallbackInfo&);
  Napi::Value clock(const Napi::CallbackInfo&);
  Napi::Value measure(const Napi::CallbackInfo&);
  Napi::Value measure_library(const Napi::CallbackInfo&);
  void dispose(const Napi::CallbackInfo&);
};

Napi::Value load_weights(const Napi::CallbackInfo& info, SharedDevice device);

}  // namespace cria

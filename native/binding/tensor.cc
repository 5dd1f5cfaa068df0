// tensor.cc - DeviceTensor and Weight: handles; the bytes stay on the device.
#include "classes.h"
#include "decode.h"

namespace cria {

Held::~Held() {
  let_go();
  if (device) device->held.erase(this);
}
void Held::held_by(SharedDevice open, size_t bytes) {
  device = std::move(open);
  bytes_ = int64_t(bytes);
  device->held.insert(this);
  if (bytes_) Napi::MemoryManagement::AdjustExternalMemory(device->env, bytes_);
}
void Held::let_go() {
  if (bytes_) Napi::MemoryManagement::AdjustExternalMemory(device->env, -bytes_);
  bytes_ = 0;
}

Tensor TensorHandle::resolve(std::shared_ptr<const void>& keep, const char* name) const {
  switch (state) {
    case State::memory:
      keep = buffer;
      return tensor;
    case State::result: {
      keep = program;
      Tensor t = tensor;
      t.data = program->addresses[program->copy_of_last_run()][result];
      t.value = -1;
      return t;
    }
    case State::recorded:
      fail("ERR_ARGUMENT", name, " is being recorded: it has no memory before the recording ends");
    case State::ended:
      fail("ERR_DISPOSED", name, " lived only inside its recording; return it from the body of record() to keep it");
    case State::disposed:
      break;
  }
  fail("ERR_DISPOSED", name, " was disposed");
}

View elements_of(const Napi::Value& value, const Tensor& tensor, const char* name) {
  View view;
  bool fits = false;
  const char* expected = tensor.dtype == DType::bf16  ? "Uint16Array"
                         : tensor.dtype == DType::f32 ? "Float32Array"
                         : tensor.dtype == DType::i32 ? "Int32Array"
                                                      : "Uint32Array";
  if (value.IsTypedArray()) {
    napi_typedarray_type type{};
    size_t length = 0;
    void* data = nullptr;  // also of a SharedArrayBuffer, for which Napi::ArrayBuffer has no name; null when detached
    if (napi_get_typedarray_info(value.Env(), value, &type, &length, &data, nullptr, nullptr) != napi_ok)
      fail("ERR_ARGUMENT", name, ": the array cannot be read");
    view = {static_cast<std::byte*>(data), value.As<Napi::TypedArray>().ByteLength()};
    fits = (tensor.dtype == DType::bf16 && type == napi_uint16_array) ||
           (tensor.dtype == DType::f32 && type == napi_float32_array) ||
           (tensor.dtype == DType::i32 && type == napi_int32_array) ||
           (tensor.dtype == DType::u32 && type == napi_uint32_array) || type == napi_uint8_array;
  }
  if (!fits)
    fail("ERR_ARGUMENT", name, ": the tensor is ", name_of(tensor.dtype), " ", shape_text(tensor), ", expected a ",
         expected, " or a Uint8Array");
  return view;
}

View view_of(const Napi::Value& value, const Tensor& tensor, const char* name) {
  const View view = elements_of(value, tensor, name);
  if (view.bytes > tensor.bytes() || view.bytes % size_of(tensor.dtype) != 0)
    fail("ERR_ARGUMENT", name, ": the array has ", view.bytes, " bytes, the tensor ", name_of(tensor.dtype), " ",
         shape_text(tensor), " has ", tensor.bytes());
  return view;
}

TensorClass::TensorClass(const Napi::CallbackInfo& info) : Wrapped(info) {
  handle = payload<std::shared_ptr<TensorHandle>>(info);
}
Napi::Function TensorClass::define(Napi::Env env) {
  return DefineClass(env, kName,
                     {InstanceAccessor<&TensorClass::dtype>("dtype"), InstanceAccessor<&TensorClass::shape>("shape"),
                      InstanceMethod<&TensorClass::dispose>(Napi::Symbol::WellKnown(env, "dispose"))});
}
Napi::Value TensorClass::dtype(const Napi::CallbackInfo& info) {
  receiver(info);
  return Napi::String::New(info.Env(), name_of(handle->tensor.dtype));
}
Napi::Value TensorClass::shape(const Napi::CallbackInfo& info) {
  receiver(info);
  Napi::Array shape = Napi::Array::New(info.Env(), size_t(handle->tensor.rank));
  for (int i = 0; i < handle->tensor.rank; i++) shape.Set(uint32_t(i), double(handle->tensor.dims[size_t(i)]));
  return shape;
}
void TensorClass::dispose(const Napi::CallbackInfo&) {
  if (handle->state == TensorHandle::State::recorded) return;  // it goes with its recording
  handle->release();
}

WeightClass::WeightClass(const Napi::CallbackInfo& info) : Wrapped(info) {
  handle = payload<std::shared_ptr<WeightHandle>>(info);
}
Napi::Function WeightClass::define(Napi::Env env) {
  return DefineClass(env, kName,
                     {InstanceAccessor<&WeightClass::dtype>("dtype"), InstanceAccessor<&WeightClass::shape>("shape"),
                      InstanceAccessor<&WeightClass::file>("file")});
}
Napi::Value WeightClass::dtype(const Napi::CallbackInfo& info) {
  receiver(info);
  return Napi::String::New(info.Env(), handle->dtype);
}
Napi::Value WeightClass::shape(const Napi::CallbackInfo& info) {
  receiver(info);
  Napi::Array shape = Napi::Array::New(info.Env(), handle->shape.size());
  for (size_t i = 0; i < handle->shape.size(); i++) shape.Set(uint32_t(i), double(handle->shape[i]));
  return shape;
}
Napi::Value WeightClass::file(const Napi::CallbackInfo& info) {
  receiver(info);
  return Napi::String::New(info.Env(), handle->file);
}

}  // namespace cria

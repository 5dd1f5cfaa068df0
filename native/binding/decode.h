// decode.h - JavaScript arguments -> plain values, by type tag; what is rejected is named.
#pragma once
#include <string>

#include "classes.h"

namespace cria {

// A value in a few words, for messages.
inline std::string describe(const Napi::Value& v) {
  if (v.IsUndefined()) return "undefined";
  if (v.IsNull()) return "null";
  if (v.IsSymbol()) return "a symbol";
  if (v.IsBigInt()) return "a BigInt";
  if (v.IsNumber() || v.IsString() || v.IsBoolean()) return v.ToString().Utf8Value();
  if (v.IsFunction()) return "a function";
  if (WeightClass::from(v)) return "a Weight";
  if (TensorClass::from(v)) return "a DeviceTensor";
  return "an object";
}

// The arguments of one call. Tensors and weights that it decodes are added to `keep`.
class Arguments {
 public:
  Arguments(const char* function, const Napi::CallbackInfo& info, const SharedDevice& device, Keep& keep,
            const void* recording = nullptr)
      : function_(function), info_(info), device_(device), keep_(keep), recording_(recording) {}

  Tensor tensor(size_t i, const char* name) { return tensor(at(i), name); }
  Weight weight(size_t i, const char* name) { return blocks(i, name).view(); }
  // The same where it lies: it is not brought to the device.
  const WeightBlocks& blocks(size_t i, const char* name) {
    const WeightClass* w = WeightClass::from(at(i));
    if (!w) wrong(name, "a Weight", at(i));
    if (w->handle->device != device_) fail("ERR_ARGUMENT", function_, ": ", name, " belongs to another device");
    if (!w->handle->weight) fail("ERR_DTYPE", function_, ": ", name, " is ", w->handle->dtype, ", expected BF16");
    keep_.push_back(w->handle->weight);
    return *w->handle->weight;
  }
  double number(size_t i, const char* name) {
    if (!at(i).IsNumber()) wrong(name, "a number", at(i));
    return at(i).As<Napi::Number>().DoubleValue();
  }
  Napi::Object object(size_t i, const char* name) {
    if (!at(i).IsObject()) wrong(name, "an object", at(i));
    return at(i).As<Napi::Object>();
  }
  // A field that must be a tensor: field(step, "step.tokens", "tokens").
  Tensor field(const Napi::Object& object, const char* name, const char* key) { return tensor(object.Get(key), name); }
  Tensor optional_field(const Napi::Object& object, const char* name, const char* key) {
    const Napi::Value value = object.Get(key);
    return value.IsUndefined() || value.IsNull() ? Tensor{} : tensor(value, name);
  }
  bool has(size_t i) const { return info_.Length() > i && !info_[i].IsUndefined(); }

  [[noreturn]] void wrong(const char* name, const char* expected, const Napi::Value& found) const {
    fail("ERR_ARGUMENT", function_, ": ", name, " is ", describe(found), ", expected ", expected);
  }

 private:
  Napi::Value at(size_t i) const { return info_[i]; }
  Tensor tensor(const Napi::Value& value, const char* name) {
    const TensorClass* t = TensorClass::from(value);
    if (!t) wrong(name, "a DeviceTensor", value);
    const TensorHandle& h = *t->handle;
    if (h.device != device_) fail("ERR_ARGUMENT", function_, ": ", name, " belongs to another device");
    if (h.state == TensorHandle::State::recorded) {
      if (h.recording != recording_) fail("ERR_ARGUMENT", function_, ": ", name, " belongs to another recording");
      return h.tensor;
    }
    if (h.state == TensorHandle::State::result && recording_)
      fail("ERR_ARGUMENT", function_, ": ", name,
           " is the result of another program, whose address changes from run to run; give it a tensor of its own");
    std::shared_ptr<const void> keep;
    const Tensor resolved = h.resolve(keep, concat(function_, ": ", name).c_str());
    keep_.push_back(std::move(keep));
    return resolved;
  }

  const char* function_;
  const Napi::CallbackInfo& info_;
  const SharedDevice& device_;
  Keep& keep_;
  const void* recording_;
};

// A whole number in [min, max]; anything else is ERR_ARGUMENT.
inline int64_t whole_number(const Napi::Value& value, const std::string& name, double min, double max) {
  const double n = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : min - 1;
  if (!(n >= min && n <= max) || n != double(int64_t(n)))
    fail("ERR_ARGUMENT", name, " is ", describe(value), ", expected a whole number from ", int64_t(min), " to ",
         int64_t(max));
  return int64_t(n);
}

inline DType dtype_from(const Napi::Value& value, const char* name) {
  const std::string text = value.IsString() ? value.As<Napi::String>().Utf8Value() : "";
  for (const DType t : {DType::bf16, DType::f32, DType::i32, DType::u32})
    if (text == name_of(t)) return t;
  fail("ERR_ARGUMENT", name, " is \"", text, "\", expected bf16, f32, i32 or u32");
}

// The bytes of an ArrayBufferView, whose elements are what a tensor of that type holds.
struct View {
  std::byte* data = nullptr;
  size_t bytes = 0;
};
View elements_of(const Napi::Value& value, const Tensor& tensor, const char* name);
// The same, and not more of them than the tensor has.
View view_of(const Napi::Value& value, const Tensor& tensor, const char* name);

}  // namespace cria

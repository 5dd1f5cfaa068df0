// device.cc - Device: memory, the stream, and recording.
#include <algorithm>

#include "classes.h"
#include "decode.h"

namespace cria {

DeviceClass::DeviceClass(const Napi::CallbackInfo& info) : Wrapped(info) { device = payload<SharedDevice>(info); }

Napi::Function DeviceClass::define(Napi::Env env) {
  return DefineClass(
      env, kName,
      {InstanceAccessor<&DeviceClass::name>("name"), InstanceAccessor<&DeviceClass::description>("description"),
       InstanceAccessor<&DeviceClass::activation>("activation"), InstanceMethod<&DeviceClass::tensor>("tensor"),
       InstanceMethod<&DeviceClass::write>("write"), InstanceMethod<&DeviceClass::read>("read"),
       InstanceMethod<&DeviceClass::weights>("weights"), InstanceMethod<&DeviceClass::upload>("upload"),
       InstanceAccessor<&DeviceClass::free_memory>("freeMemory"), InstanceMethod<&DeviceClass::stack>("stack"),
       InstanceMethod<&DeviceClass::random>("random"), InstanceMethod<&DeviceClass::copy_pages>("copyPages"),
       InstanceMethod<&DeviceClass::record>("record"), InstanceMethod<&DeviceClass::measure>("measure"),
       InstanceMethod<&DeviceClass::clock>("clock"), InstanceMethod<&DeviceClass::measure_library>("measureLibrary"),
       InstanceMethod<&DeviceClass::dispose>(Napi::Symbol::WellKnown(env, "dispose"))});
}

Napi::Value DeviceClass::name(const Napi::CallbackInfo& info) {
  receiver(info);
  return Napi::String::New(info.Env(), device->device->name());
}
Napi::Value DeviceClass::description(const Napi::CallbackInfo& info) {
  receiver(info);
  return Napi::String::New(info.Env(), device->device->description());
}
Napi::Value DeviceClass::activation(const Napi::CallbackInfo& info) {
  receiver(info);
  return Napi::String::New(info.Env(), name_of(device->device->activation()));
}

Napi::Value DeviceClass::free_memory(const Napi::CallbackInfo& info) {
  receiver(info);
  return guard(info.Env(), [&]() -> Napi::Value { return Napi::Number::New(info.Env(), device->use().free_memory()); });
}

namespace {

// The elements of `from` and where each goes. They are read once: other threads may write to shared memory meanwhile.
std::vector<Placed> placed(const Tensor& to, const Napi::Value& from, const Napi::Value& at) {
  if (size_of(to.dtype) != sizeof(uint32_t))
    fail("ERR_DTYPE", "write: the tensor is ", name_of(to.dtype), ", expected f32, i32 or u32 where `at` is given");
  const View values = elements_of(from, to, "write");
  if (!at.IsTypedArray() || at.As<Napi::TypedArray>().TypedArrayType() != napi_int32_array)
    fail("ERR_ARGUMENT", "write: at is ", describe(at), ", expected an Int32Array");
  Tensor index;
  index.dtype = DType::i32;
  const View places = elements_of(at, index, "write: at");
  if (places.bytes != values.bytes)
    fail("ERR_ARGUMENT", "write: at has ", places.bytes / 4, " elements, expected as many as the array, which has ",
         values.bytes, " bytes");
  const int64_t count = to.count();
  std::vector<Placed> elements(values.bytes / sizeof(uint32_t));
  for (size_t i = 0; i < elements.size(); i++) {
    Placed& e = elements[i];
    std::memcpy(&e.at, places.data + i * sizeof e.at, sizeof e.at);
    std::memcpy(&e.value, values.data + i * sizeof e.value, sizeof e.value);
    if (e.at < 0 || e.at >= count)
      fail("ERR_ARGUMENT", "write: at[", i, "] is ", e.at, ", expected an element of the tensor, from 0 to ",
           count - 1);
  }
  return elements;
}

}  // namespace

// tensor(dtype, shape)
Napi::Value DeviceClass::tensor(const Napi::CallbackInfo& info) {
  return guard(info.Env(), [&]() -> Napi::Value {
    Device& d = device->use();
    auto handle = std::make_shared<TensorHandle>();
    Tensor& t = handle->tensor;
    t.dtype = dtype_from(info[0], "tensor: dtype");
    const Napi::Array shape = info[1].IsArray() ? info[1].As<Napi::Array>() : Napi::Array::New(info.Env());
    if (shape.Length() < 1 || shape.Length() > 4)
      fail("ERR_ARGUMENT", "tensor: shape has ", shape.Length(), " axes, expected 1 to 4");
    double count = 1;
    for (uint32_t i = 0; i < shape.Length(); i++) {
      t.dims[i] = whole_number(shape.Get(i), concat("tensor: shape[", i, "]"), 1, 9007199254740991.0);
      count *= double(t.dims[i]);
    }
    t.rank = int(shape.Length());
    if (count * 4 > 9007199254740991.0)
      fail("ERR_OUT_OF_MEMORY", "tensor: ", shape_text(t), " has more than 2^53 bytes");
    handle->buffer = d.allocate(t.bytes());
    t.data = handle->buffer->data;
    handle->held_by(device, t.bytes());
    return TensorClass::make(Addon::of(info.Env()).tensor, handle);
  });
}

// write(to, from, at?)
void DeviceClass::write(const Napi::CallbackInfo& info) {
  guard(info.Env(), [&] {
    Device& d = device->use();
    Keep keep;
    Arguments a("write", info, device, keep);
    const Tensor to = a.tensor(0, "to");
    if (a.has(2)) {
      d.write_at(to.data, std::move(keep.front()), placed(to, info[1], info[2]));
      return;
    }
    const View from = view_of(info[1], to, "write");
    d.write(to.data, std::move(keep.front()), from.data, from.bytes);
  });
}

// read(from, into) -> Promise. The bytes arrive in memory of our own and are copied to `into` on the JavaScript thread:
// an ArrayBuffer may be detached while the device works.
Napi::Value DeviceClass::read(const Napi::CallbackInfo& info) {
  return guard(info.Env(), [&]() -> Napi::Value {
    struct Request {
      Napi::Promise::Deferred deferred;
      Napi::ObjectReference into;
      Tensor tensor;
      std::vector<std::byte> bytes;
      SharedDevice open;
    };
    Device& d = device->use();
    Keep keep;
    Arguments a("read", info, device, keep);
    const Tensor from = a.tensor(0, "from");
    const View into = view_of(info[1], from, "read");
    auto* request = new Request{Napi::Promise::Deferred::New(info.Env()), Napi::Persistent(info[1].As<Napi::Object>()),
                                from, std::vector<std::byte>(into.bytes), device};
    const Napi::Promise promise = request->deferred.Promise();
    device->js->wait(info.Env());
    d.read(from.data, std::move(keep.front()), request->bytes.data(), into.bytes,
           [request, js = device->js.get()](const std::exception_ptr& failure) {
             js->post([request, failure](Napi::Env env) {
               const std::unique_ptr<Request> r(request);
               r->open->js->done(env);
               try {
                 if (failure) std::rethrow_exception(failure);
                 const View now = view_of(r->into.Value(), r->tensor, "read");
                 if (now.bytes != r->bytes.size())
                   fail("ERR_ARGUMENT", "read: the array was detached or resized meanwhile");
                 if (now.bytes) std::memcpy(now.data, r->bytes.data(), now.bytes);
                 r->deferred.Resolve(r->into.Value());
               } catch (...) {
                 r->deferred.Reject(to_js(env, std::current_exception()));
               }
             });
           });
    return promise;
  });
}

Napi::Value DeviceClass::weights(const Napi::CallbackInfo& info) {
  return guard(info.Env(), [&]() -> Napi::Value {
    device->use();
    return load_weights(info, device);
  });
}

// stack(...parts)
Napi::Value DeviceClass::stack(const Napi::CallbackInfo& info) {
  return guard(info.Env(), [&]() -> Napi::Value {
    Device& d = device->use();
    Keep keep;
    Arguments a("stack", info, device, keep);
    std::vector<SharedWeight> parts;
    for (size_t i = 0; i < info.Length(); i++) {
      const std::string name = concat("part ", i);
      const WeightBlocks& w = a.blocks(i, name.c_str());
      const SharedWeight& part = WeightClass::from(info[i])->handle->weight;
      if (w.rank != 2) fail("ERR_SHAPE", "stack: ", name, " is a vector [", w.cols, "], expected a matrix");
      if (!parts.empty() && parts.front()->cols != w.cols)
        fail("ERR_SHAPE", "stack: ", name, " is [", w.rows, ", ", w.cols, "], expected ", parts.front()->cols,
             " columns as in part 0");
      parts.push_back(part);
    }
    if (parts.empty()) fail("ERR_ARGUMENT", "stack: no parts, expected at least one Weight");
    auto handle = std::make_shared<WeightHandle>();
    handle->weight = d.stack(parts);
    handle->held_by(device, 0);
    handle->dtype = "BF16";
    handle->shape = {handle->weight->rows, handle->weight->cols};
    handle->file = WeightClass::from(info[0])->handle->file;
    return WeightClass::make(Addon::of(info.Env()).weight, handle);
  });
}

// random([rows, cols] or [cols], seed, std)
Napi::Value DeviceClass::random(const Napi::CallbackInfo& info) {
  return guard(info.Env(), [&]() -> Napi::Value {
    Device& d = device->use();
    const Napi::Array shape = info[0].IsArray() ? info[0].As<Napi::Array>() : Napi::Array::New(info.Env());
    if (shape.Length() < 1 || shape.Length() > 2)
      fail("ERR_ARGUMENT", "random: shape has ", shape.Length(), " axes, expected 1 or 2");
    auto handle = std::make_shared<WeightHandle>();
    for (uint32_t i = 0; i < shape.Length(); i++)
      handle->shape.push_back(whole_number(shape.Get(i), concat("random: shape[", i, "]"), 1, 2147483647.0));
    const auto seed = uint64_t(whole_number(info[1], "random: seed", 0, 9007199254740991.0));
    const double std = info[2].IsNumber() ? info[2].As<Napi::Number>().DoubleValue() : -1;
    if (!(std >= 0 && std < 1e30))
      fail("ERR_ARGUMENT", "random: std is ", describe(info[2]), ", expected a number from 0 on");
    const bool vector = handle->shape.size() == 1;
    const int64_t rows = vector ? 1 : handle->shape[0], cols = handle->shape.back();
    handle->weight = d.random(vector ? 1 : 2, rows, cols, seed, float(std));
    handle->held_by(device, size_t(rows * cols) * 2);
    handle->dtype = "BF16";
    return WeightClass::make(Addon::of(info.Env()).weight, handle);
  });
}

// copyPages(kv, from, to)
void DeviceClass::copy_pages(const Napi::CallbackInfo& info) {
  guard(info.Env(), [&] {
    Device& d = device->use();
    if (!info[0].IsArray() || !info[1].IsTypedArray() || !info[2].IsTypedArray() ||
        info[1].As<Napi::TypedArray>().TypedArrayType() != napi_int32_array ||
        info[2].As<Napi::TypedArray>().TypedArrayType() != napi_int32_array ||
        info[1].As<Napi::Int32Array>().ElementLength() != info[2].As<Napi::Int32Array>().ElementLength())
      fail("ERR_ARGUMENT", "copyPages: expected (kv layers, Int32Array from, Int32Array to) with arrays of one length");
    const auto from = info[1].As<Napi::Int32Array>(), to = info[2].As<Napi::Int32Array>();
    const std::vector<int32_t> sources(from.Data(), from.Data() + from.ElementLength()),
        targets(to.Data(), to.Data() + to.ElementLength());
    Keep keep;
    Arguments a("copyPages", info, device, keep);
    std::vector<Tensor> caches;
    const Napi::Array layers = info[0].As<Napi::Array>();
    for (uint32_t i = 0; i < layers.Length(); i++) {
      if (!layers.Get(i).IsObject()) a.wrong("kv", "an array of {k, v}", layers.Get(i));
      for (const char* part : {"k", "v"}) caches.push_back(a.field(layers.Get(i).As<Napi::Object>(), part, part));
    }
    for (const Tensor& t : caches)  // everything is checked before anything is copied
      for (const auto& pages : {sources, targets})
        for (const int32_t page : pages)
          if (page < 0 || page >= t.dims[0])
            fail("ERR_ARGUMENT", "copyPages: page ", page, " is outside the cache of ", t.dims[0], " pages");
    for (size_t i = 0; i < caches.size(); i++)
      d.copy_pages(caches[i].data, caches[i].bytes() / size_t(caches[i].dims[0]), sources, targets, keep[i]);
  });
}

namespace {

// Every recorded tensor in what the body returned: a tensor, or objects and arrays of them.
void collect(const Napi::Value& value, std::vector<std::shared_ptr<TensorHandle>>& found, int depth) {
  if (const TensorClass* t = TensorClass::from(value)) {
    if (t->handle->state == TensorHandle::State::recorded &&
        std::find(found.begin(), found.end(), t->handle) == found.end())
      found.push_back(t->handle);
    return;
  }
  if (!value.IsObject() || value.IsFunction() || depth == 0) return;
  const Napi::Object object = value.As<Napi::Object>();
  const Napi::Array names = object.GetPropertyNames();
  for (uint32_t i = 0; i < names.Length(); i++) collect(object.Get(names.Get(i)), found, depth - 1);
}

}  // namespace

// record(body) -> Program
Napi::Value DeviceClass::record(const Napi::CallbackInfo& info) {
  return guard(info.Env(), [&]() -> Napi::Value {
    Device& d = device->use();
    Napi::Env env = info.Env();
    if (!info[0].IsFunction()) fail("ERR_ARGUMENT", "record: body is not a function");
    const Napi::Object js_recorder = RecorderClass::make(Addon::of(env).recorder, device);
    RecorderClass& recorder = *RecorderClass::Unwrap(js_recorder);
    struct End {  // however the body ends, what it recorded is no longer usable unless it was returned
      RecorderClass& recorder;
      ~End() {
        recorder.ended = true;
        for (auto& h : recorder.handles)
          if (h->state == TensorHandle::State::recorded) h->state = TensorHandle::State::ended;
        recorder.handles.clear();
        recorder.keep.clear();
        recorder.recording.reset();
      }
    } end{recorder};

    const Napi::Value returned = info[0].As<Napi::Function>().Call({js_recorder});
    if (returned.IsPromise())
      fail("ERR_ARGUMENT", "record: body returned a promise, but a recording ends when the body returns");
    std::vector<std::shared_ptr<TensorHandle>> results;
    collect(returned, results, 4);
    std::vector<int> values;
    for (const auto& h : results) {
      if (h->recording != recorder.recording.get())
        fail("ERR_ARGUMENT", "record: body returned a tensor of another recording");
      values.push_back(h->tensor.value);
    }
    std::pair<SharedDevice, std::shared_ptr<Program>> made{
        device, d.prepare(*recorder.recording, values, std::move(recorder.keep))};
    for (size_t i = 0; i < results.size(); i++) {
      results[i]->state = TensorHandle::State::result;
      results[i]->program = made.second;
      results[i]->result = i;
    }
    const Napi::Object program = ProgramClass::make(Addon::of(env).program, made);
    const Napi::Object holder = Napi::Object::New(env);
    holder.Set("value", returned);
    ProgramClass::Unwrap(program)->outputs = Napi::Persistent(holder);
    return program;
  });
}

void DeviceClass::dispose(const Napi::CallbackInfo& info) {
  guard(info.Env(), [&] { device->close(); });
}

}  // namespace cria

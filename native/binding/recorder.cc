// recorder.cc - one method per op: decode the arguments, append the command, return the tensors it will write.
#include "classes.h"
#include "decode.h"

namespace cria {

RecorderClass::RecorderClass(const Napi::CallbackInfo& info) : Wrapped(info) {
  device = payload<SharedDevice>(info);
  recording = std::make_unique<Recording>(device->use().activation());
}

Napi::Function RecorderClass::define(Napi::Env env) {
  return DefineClass(env, kName,
                     {
                         InstanceMethod<&RecorderClass::embed>("embed", napi_enumerable),
                         InstanceMethod<&RecorderClass::rms_norm>("rmsNorm", napi_enumerable),
                         InstanceMethod<&RecorderClass::linear>("linear", napi_enumerable),
                         InstanceMethod<&RecorderClass::rope_append>("ropeAppend", napi_enumerable),
                         InstanceMethod<&RecorderClass::attention>("attention", napi_enumerable),
                         InstanceMethod<&RecorderClass::swiglu>("swiglu", napi_enumerable),
                         InstanceMethod<&RecorderClass::select_rows>("selectRows", napi_enumerable),
                         InstanceMethod<&RecorderClass::adjust>("adjust", napi_enumerable),
                         InstanceMethod<&RecorderClass::sample>("sample", napi_enumerable),
                         InstanceMethod<&RecorderClass::logprobs>("logprobs", napi_enumerable),
                     });
}

Napi::Object RecorderClass::result(Napi::Env env, const Tensor& tensor) {
  auto handle = std::make_shared<TensorHandle>();
  handle->state = TensorHandle::State::recorded;
  handle->tensor = tensor;
  handle->held_by(device, 0);
  handle->recording = recording.get();
  handles.push_back(handle);
  return TensorClass::make(Addon::of(env).tensor, handle);
}

// Decodes into `op` and appends it; what was kept for a call that fails is let go.
#define CRIA_RECORD(OP, DECODE)                                                             \
  return guard(info.Env(), [&]() -> Napi::Value {                                           \
    if (ended) fail("ERR_CLOSED", OP::name, ": the recording has ended");                   \
    const size_t kept = keep.size();                                                        \
    OP op;                                                                                  \
    try {                                                                                   \
      Arguments a(OP::name, info, device, keep, recording.get());                           \
      DECODE;                                                                               \
      recording->add(op);                                                                   \
    } catch (...) {                                                                         \
      keep.resize(kept);                                                                    \
      throw;                                                                                \
    }                                                                                       \
    return results(info.Env(), op, [&](const Tensor& t) { return result(info.Env(), t); }); \
  })

namespace {

// What each op returns to JavaScript: its one output, or an object of them.
template <class Make>
Napi::Value results(Napi::Env, const Embed& op, Make make) {
  return make(op.x);
}
template <class Make>
Napi::Value results(Napi::Env, const RmsNorm& op, Make make) {
  return make(op.y);
}
template <class Make>
Napi::Value results(Napi::Env, const Linear& op, Make make) {
  return make(op.y);
}
template <class Make>
Napi::Value results(Napi::Env, const RopeAppend& op, Make make) {
  return make(op.q);
}
template <class Make>
Napi::Value results(Napi::Env, const Attention& op, Make make) {
  return make(op.y);
}
template <class Make>
Napi::Value results(Napi::Env, const Swiglu& op, Make make) {
  return make(op.y);
}
template <class Make>
Napi::Value results(Napi::Env, const SelectRows& op, Make make) {
  return make(op.y);
}
template <class Make>
Napi::Value results(Napi::Env, const Adjust& op, Make make) {
  return make(op.y);
}
template <class Make>
Napi::Value results(Napi::Env env, const Sample& op, Make make) {
  Napi::Object sampled = Napi::Object::New(env);
  sampled.Set("ids", make(op.ids));
  sampled.Set("logprobs", make(op.logprobs));
  sampled.Set("status", make(op.status));
  return sampled;
}
template <class Make>
Napi::Value results(Napi::Env env, const Logprobs& op, Make make) {
  Napi::Object logprobs = Napi::Object::New(env);
  logprobs.Set("chosen", make(op.chosen));
  logprobs.Set("topIds", make(op.topIds));
  logprobs.Set("top", make(op.top));
  return logprobs;
}

// The number of live rows is read from this tensor by every command that follows: it needs an address that stays.
template <class Op>
void from_outside(const Op& op, const Tensor& tensor, const char* name) {
  if (tensor.value >= 0)
    fail("ERR_ARGUMENT", op.name, ": ", name, " is computed by this recording, expected a tensor of the device");
}

}  // namespace

Napi::Value RecorderClass::embed(const Napi::CallbackInfo& info) {
  CRIA_RECORD(Embed, {
    op.table = a.weight(0, "table");
    const Napi::Object step = a.object(1, "step");
    op.tokens = a.field(step, "step.tokens", "tokens");
    op.source = a.field(step, "step.source", "source");
    op.previous = a.optional_field(step, "step.previous", "previous");
    op.queryStart = a.field(step, "step.queryStart", "queryStart");
    from_outside(op, op.queryStart, "step.queryStart");
  });
}

Napi::Value RecorderClass::rms_norm(const Napi::CallbackInfo& info) {
  CRIA_RECORD(RmsNorm, {
    op.x = a.tensor(0, "x");
    op.weight = a.weight(1, "weight");
    op.eps = float(a.number(2, "eps"));
  });
}

Napi::Value RecorderClass::linear(const Napi::CallbackInfo& info) {
  CRIA_RECORD(Linear, {
    op.x = a.tensor(0, "x");
    op.weight = a.weight(1, "weight");
    if (a.has(2)) {
      const Napi::Object options = a.object(2, "options");
      op.add = a.optional_field(options, "add", "add");
      const Napi::Value as = options.Get("as");
      if (!as.IsUndefined() && !(as.IsString() && as.As<Napi::String>().Utf8Value() == "f32"))
        a.wrong("as", "'f32'", as);
      op.f32 = as.IsString();
    }
  });
}

Napi::Value RecorderClass::rope_append(const Napi::CallbackInfo& info) {
  CRIA_RECORD(RopeAppend, {
    op.qkv = a.tensor(0, "qkv");
    const Napi::Object kv = a.object(1, "kv");
    op.k = a.field(kv, "kv.k", "k");
    op.v = a.field(kv, "kv.v", "v");
    const Napi::Object step = a.object(2, "step");
    op.positions = a.field(step, "step.positions", "positions");
    op.slots = a.field(step, "step.slots", "slots");
    op.invFreq = a.tensor(3, "invFreq");
  });
}

Napi::Value RecorderClass::attention(const Napi::CallbackInfo& info) {
  CRIA_RECORD(Attention, {
    op.q = a.tensor(0, "q");
    const Napi::Object kv = a.object(1, "kv");
    op.k = a.field(kv, "kv.k", "k");
    op.v = a.field(kv, "kv.v", "v");
    const Napi::Object step = a.object(2, "step");
    op.queryStart = a.field(step, "step.queryStart", "queryStart");
    op.kvLength = a.field(step, "step.kvLength", "kvLength");
    op.pageTable = a.field(step, "step.pageTable", "pageTable");
  });
}

Napi::Value RecorderClass::swiglu(const Napi::CallbackInfo& info) {
  CRIA_RECORD(Swiglu, { op.gateUp = a.tensor(0, "gateUp"); });
}

Napi::Value RecorderClass::select_rows(const Napi::CallbackInfo& info) {
  CRIA_RECORD(SelectRows, {
    op.x = a.tensor(0, "x");
    op.outputs = a.field(a.object(1, "step"), "step.outputs", "outputs");
    from_outside(op, op.outputs, "step.outputs");
  });
}

Napi::Value RecorderClass::adjust(const Napi::CallbackInfo& info) {
  CRIA_RECORD(Adjust, {
    op.logits = a.tensor(0, "logits");
    const Napi::Object e = a.object(1, "edits");
    op.start = a.field(e, "edits.start", "start");
    op.end = a.field(e, "edits.end", "end");
    op.ids = a.field(e, "edits.ids", "ids");
    op.bias = a.field(e, "edits.bias", "bias");
    op.count = a.field(e, "edits.count", "count");
    op.repetition = a.field(e, "edits.repetition", "repetition");
    op.frequency = a.field(e, "edits.frequency", "frequency");
    op.presence = a.field(e, "edits.presence", "presence");
    op.newest = a.field(e, "edits.newest", "newest");
    op.previous = a.optional_field(e, "edits.previous", "previous");
    op.maskRow = a.field(e, "edits.maskRow", "maskRow");
    op.masks = a.optional_field(e, "edits.masks", "masks");
  });
}

Napi::Value RecorderClass::sample(const Napi::CallbackInfo& info) {
  CRIA_RECORD(Sample, {
    op.logits = a.tensor(0, "logits");
    const Napi::Object s = a.object(1, "sampling");
    op.temperature = a.field(s, "sampling.temperature", "temperature");
    op.topP = a.field(s, "sampling.topP", "topP");
    op.minP = a.field(s, "sampling.minP", "minP");
    op.topK = a.field(s, "sampling.topK", "topK");
    op.seed = a.field(s, "sampling.seed", "seed");
    op.position = a.field(s, "sampling.position", "position");
    op.sampled = a.optional_field(s, "sampling.sampled", "sampled");
  });
}

Napi::Value RecorderClass::logprobs(const Napi::CallbackInfo& info) {
  CRIA_RECORD(Logprobs, {
    op.logits = a.tensor(0, "logits");
    op.sampled = a.tensor(1, "sampled");
    op.given = a.tensor(2, "given");
  });
}

}  // namespace cria

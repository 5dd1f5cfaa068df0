// program.cc - Program: a recorded forward pass that JavaScript replays with one call.
#include "classes.h"

namespace cria {

ProgramClass::ProgramClass(const Napi::CallbackInfo& info) : Wrapped(info) {
  auto& [open, made] = payload<std::pair<SharedDevice, std::shared_ptr<Program>>>(info);
  program = made;
  held_by(open, program->memory->bytes);
}

Napi::Function ProgramClass::define(Napi::Env env) {
  return DefineClass(env, kName,
                     {InstanceAccessor<&ProgramClass::get_outputs>("outputs"),
                      InstanceAccessor<&ProgramClass::cost>("cost"), InstanceAccessor<&ProgramClass::memory>("memory"),
                      InstanceAccessor<&ProgramClass::launches>("launches"), InstanceMethod<&ProgramClass::run>("run"),
                      InstanceMethod<&ProgramClass::dispose>(Napi::Symbol::WellKnown(env, "dispose"))});
}

Napi::Value ProgramClass::get_outputs(const Napi::CallbackInfo& info) {
  receiver(info);
  return outputs.Get("value");
}

Napi::Value ProgramClass::cost(const Napi::CallbackInfo& info) {
  receiver(info);
  return guard(info.Env(), [&]() -> Napi::Value {
    if (!program) fail("ERR_DISPOSED", "the program was disposed");
    const auto& commands = program->commands[0];
    Napi::Array costs = Napi::Array::New(info.Env(), commands.size());
    for (size_t i = 0; i < commands.size(); i++) {
      Napi::Object cost = Napi::Object::New(info.Env());
      std::visit(
          [&](const auto& op) {
            const Cost c = op.cost();
            cost.Set("op", label(op));
            cost.Set("bytes", c.bytes);
            cost.Set("flops", c.flops);
          },
          commands[i]);
      costs.Set(uint32_t(i), cost);
    }
    return costs;
  });
}

Napi::Value ProgramClass::launches(const Napi::CallbackInfo& info) {
  receiver(info);
  return guard(info.Env(), [&]() -> Napi::Value {
    if (!program) fail("ERR_DISPOSED", "the program was disposed");
    const auto all = program->launches();
    Napi::Array list = Napi::Array::New(info.Env(), all.size());
    for (uint32_t i = 0; i < all.size(); i++) {
      const auto axes = [&](const unsigned (&size)[3]) {
        Napi::Array array = Napi::Array::New(info.Env(), 3);
        for (uint32_t axis = 0; axis < 3; axis++) array.Set(axis, size[axis]);
        return array;
      };
      Napi::Object launch = Napi::Object::New(info.Env());
      launch.Set("kernel", all[i].kernel);
      launch.Set("grid", axes(all[i].grid));
      launch.Set("block", axes(all[i].block));
      launch.Set("shared", double(all[i].shared));
      list.Set(i, launch);
    }
    return list;
  });
}

Napi::Value ProgramClass::memory(const Napi::CallbackInfo& info) {
  receiver(info);
  return Napi::Number::New(info.Env(), program ? double(program->values_bytes + program->memory->bytes) : 0);
}

void ProgramClass::run(const Napi::CallbackInfo& info) {
  guard(info.Env(), [&] {
    if (!program) fail("ERR_DISPOSED", "run: the program was disposed");
    device->use().run(program);
  });
}

void ProgramClass::dispose(const Napi::CallbackInfo&) { release(); }

}  // namespace cria

// addon.cc - what the module exports, and the state of each JavaScript environment.
#include <cstdlib>

#include "../devices/driver.h"
#include "../devices/plugin.h"
#include "classes.h"
#include "decode.h"

namespace cria {

Napi::Value to_js(Napi::Env env, std::exception_ptr error) {
  std::string code = "ERR_INTERNAL", message = "unknown native error";
  try {
    std::rethrow_exception(std::move(error));
  } catch (const Napi::Error& e) {
    return e.Value();
  } catch (const Error& e) {
    code = e.code;
    message = e.what();
  } catch (const std::bad_alloc&) {
    code = "ERR_OUT_OF_MEMORY";
    message = "no memory left";
  } catch (const std::exception& e) {
    message = e.what();
  } catch (...) {
  }
  Addon* addon = env.GetInstanceData<Addon>();
  if (addon && !addon->make_error.IsEmpty())
    return addon->make_error.Call({Napi::String::New(env, code), Napi::String::New(env, message)});
  const Napi::Object plain = Napi::Error::New(env, message).Value();
  plain.Set("code", code);
  return plain;
}

namespace {

// open(device, { threads, activations, fuse })
Napi::Value open(const Napi::CallbackInfo& info) {
  return guard(info.Env(), [&]() -> Napi::Value {
    Napi::Env env = info.Env();
    const std::string name = info[0].IsString() ? info[0].As<Napi::String>().Utf8Value() : "";
    const Napi::Object options = info[1].IsObject() ? info[1].As<Napi::Object>() : Napi::Object::New(env);
    const bool gpu = name.rfind("cuda:", 0) == 0 && name.size() > 5 && name.size() < 9 &&
                     name.find_first_not_of("0123456789", 5) == std::string::npos;
    if (name != "cpu" && name != "simt" && !gpu)
      fail("ERR_DEVICE_UNKNOWN", "device is \"", name,
           "\", expected 'auto', 'cpu' or 'cuda:0' (the number of the GPU)");

    CpuOptions cpu;
    if (!options.Get("threads").IsUndefined())
      cpu.threads = int(whole_number(options.Get("threads"), "threads", 1, 1024));
    if (!options.Get("activations").IsUndefined()) {
      cpu.activation = dtype_from(options.Get("activations"), "activations");
      if (cpu.activation != DType::bf16 && cpu.activation != DType::f32)
        fail("ERR_ARGUMENT", "activations is ", name_of(cpu.activation), ", expected bf16 or f32");
    }
    if (const char* isa = std::getenv("CRIA_CPU")) cpu.isa = isa;
    if (name != "cpu" && cpu.activation != DType::bf16)
      fail("ERR_DEVICE_UNSUPPORTED", "device ", name,
           ": activations is f32, expected bf16; only 'cpu' has the float32 mode");
    PluginOptions gpu_options;
    if (gpu) gpu_options.index = std::stoi(name.substr(5));
    if (const char* const settings = std::getenv("CRIA_SIMT")) gpu_options.settings = settings;
    const Napi::Value fuse = options.Get("fuse");
    if (!fuse.IsUndefined() && !fuse.IsBoolean()) fail("ERR_ARGUMENT", "fuse is not true or false");
    if (fuse.IsBoolean()) gpu_options.fuse = fuse.As<Napi::Boolean>();
    auto device = std::make_shared<OpenDevice>(
        env, name == "cpu" ? open_cpu(cpu) : open_plugin(gpu ? "cuda" : "simt", gpu_options));
    return DeviceClass::make(Addon::of(env).device, device);
  });
}

// devices() -> [{ device, available, reason, memory, free }]
Napi::Value list_devices(const Napi::CallbackInfo& info) {
  return guard(info.Env(), [&]() -> Napi::Value {
    Napi::Env env = info.Env();
    Napi::Array list = Napi::Array::New(env);
    const auto add = [&](const DeviceReport& report) {
      Napi::Object r = Napi::Object::New(env);
      r.Set("device", report.device);
      r.Set("available", report.available);
      r.Set("reason", report.reason);
      if (report.memory > 0) r.Set("memory", report.memory);
      if (report.free > 0) r.Set("free", report.free);
      list.Set(list.Length(), r);
    };
    std::vector<DeviceReport> reports;
    report_gpus(reports);
    reports.push_back(report_cpu());
    for (const DeviceReport& report : reports) add(report);
    return list;
  });
}

// gpuSoftware() -> { driver, driverCuda, pluginCuda, architectures }
Napi::Value gpu_software(const Napi::CallbackInfo& info) {
  return guard(info.Env(), [&]() -> Napi::Value {
    Napi::Env env = info.Env();
    Napi::Object result = Napi::Object::New(env);
    const Driver driver = find_driver();
    if (!driver.version.empty()) result.Set("driver", driver.version);
    if (driver.cuda > 0) result.Set("driverCuda", cuda_text(driver.cuda));
    try {
      const PluginBuild build = describe_plugin();
      result.Set("pluginCuda", cuda_text(build.cuda));
      Napi::Array architectures = Napi::Array::New(env);
      for (const std::string& a : build.architectures) architectures.Set(architectures.Length(), "sm_" + a);
      result.Set("architectures", architectures);
    } catch (const Error&) {
      // There is no plug-in: nothing to say of it.
    }
    return result;
  });
}

// setErrorFactory((code, message) => Error): lib/native.ts gives native errors their typed classes.
void set_error_factory(const Napi::CallbackInfo& info) {
  if (info[0].IsFunction()) Addon::of(info.Env()).make_error = Napi::Persistent(info[0].As<Napi::Function>());
}

}  // namespace

Addon::Addon(Napi::Env env, Napi::Object exports) {
  device = Napi::Persistent(DeviceClass::define(env));
  tensor = Napi::Persistent(TensorClass::define(env));
  weight = Napi::Persistent(WeightClass::define(env));
  recorder = Napi::Persistent(RecorderClass::define(env));
  program = Napi::Persistent(ProgramClass::define(env));
  exports.Set("open", Napi::Function::New(env, open, "open"));
  exports.Set("devices", Napi::Function::New(env, list_devices, "devices"));
  exports.Set("gpuSoftware", Napi::Function::New(env, gpu_software, "gpuSoftware"));
  exports.Set("setErrorFactory", Napi::Function::New(env, set_error_factory, "setErrorFactory"));
}

}  // namespace cria

static Napi::Object init(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new cria::Addon(env, exports));
  return exports;
}
NODE_API_MODULE(cria, init)

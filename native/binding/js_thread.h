// js_thread.h - how other threads get back to JavaScript.
#pragma once
#include <napi.h>

#include <functional>
#include <memory>

namespace cria {

// Runs functions on the JavaScript thread, in order. Keeps the process alive only while somebody waits.
class JsThread {
 public:
  using Job = std::function<void(Napi::Env)>;

  explicit JsThread(Napi::Env env)
      : function_(Napi::ThreadSafeFunction::New(env, Napi::Function::New(env, [](const Napi::CallbackInfo&) {}), "cria",
                                                0, 1)) {
    function_.Unref(env);
  }
  ~JsThread() { function_.Release(); }
  JsThread(const JsThread&) = delete;
  JsThread& operator=(const JsThread&) = delete;

  // From any thread. The job is dropped when the environment is being torn down.
  void post(Job job) {
    auto* heap = new Job(std::move(job));
    const napi_status posted = function_.NonBlockingCall(heap, [](Napi::Env env, Napi::Function, Job* mine) {
      const std::unique_ptr<Job> job_of_ours(mine);
      try {
        if (env) (*mine)(env);
      } catch (...) {
        // Jobs report their own failures. What gets here is a worker being terminated, in which no JavaScript runs any
        // more: nobody is left to be told.
      }
    });
    if (posted != napi_ok) delete heap;
  }
  // On the JavaScript thread: one more, one less job that the process must stay alive for.
  void wait(Napi::Env env) {
    if (waiting_++ == 0) function_.Ref(env);
  }
  void done(Napi::Env env) {
    if (--waiting_ == 0) function_.Unref(env);
  }

 private:
  Napi::ThreadSafeFunction function_;
  int waiting_ = 0;
};

}  // namespace cria

// queue.h - a device's thread: work in the order in which it was given, and the first failure for whoever asks next.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "../core/error.h"

namespace cria {

class Queue {
 public:
  using Done = std::function<void(std::exception_ptr)>;

  // Seconds on the host's clock.
  static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }

  explicit Queue(std::string name) : name_(std::move(name)), thread_([this] { loop(); }) {}
  ~Queue() { close(); }

  // Never waits. done is called once, on the queue's thread or, after close(), here; it must not throw.
  void add(std::function<void()> work, Done done = {}) {
    {
      std::lock_guard lock(mutex_);
      if (!closing_) {
        tasks_.push_back({std::move(work), std::move(done)});
        wake_.notify_one();
        return;
      }
    }
    if (done) done(closed());
  }
  // Until everything added so far has been done, or told that it will not be. Not for the queue's own thread.
  void wait() {
    const auto passed = std::make_shared<std::promise<void>>();  // its thread may still hold it when this returns
    add([] {}, [passed](const std::exception_ptr&) { passed->set_value(); });
    passed->get_future().wait();
  }
  // Work can look at this to end early.
  bool closing() const { return closing_; }
  // Ends after the task in hand; those that wait hear ERR_CLOSED.
  void close() {
    {
      std::lock_guard lock(mutex_);
      if (closing_) return;
      closing_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }

 private:
  struct Task {
    std::function<void()> work;
    Done done;
  };
  std::exception_ptr closed() const {
    return std::make_exception_ptr(Error("ERR_CLOSED", name_ + ": the device was closed"));
  }
  void loop() {
    for (;;) {
      Task task;
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return closing_ || !tasks_.empty(); });
        if (closing_) break;
        task = std::move(tasks_.front());
        tasks_.pop_front();
      }
      if (!failure_) {
        try {
          task.work();
        } catch (...) {
          failure_ = std::current_exception();
        }
      }
      task.work = nullptr;  // lets go of what it kept before anybody hears that it is done
      if (task.done) task.done(failure_);
    }
    for (Task& task : tasks_)
      if (task.done) task.done(closed());
    tasks_.clear();
  }

  const std::string name_;
  std::exception_ptr failure_;  // the first one; every later task gets it instead of being run
  std::atomic<bool> closing_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Task> tasks_;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace cria

/* What was computed, by storage; a later one at the same address is another. It knows copies to a device that no
 * operator made; why something was not computed (too large, no CPU kernel, a compiled one wrote it) it does not know. */
#pragma once
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <mutex>
#include <unordered_map>

extern "C" bool vgpu_was_copied(const void *at); /* whether the last write there was a copy that nobody else saw */

namespace {

/* Never destroyed: threads of torch's may outlive what a process ends with. */
std::mutex &computed_lock = *new std::mutex;
enum class Value { unknown, right, assumed, holds };
struct Known {
  c10::weak_intrusive_ptr<c10::StorageImpl> storage;
  Value value; /* `assumed`: it goes back to a choice that was not computed; `holds`: flags, all set, too many to write */
};
auto &computed = *new std::unordered_map<c10::StorageImpl *, Known>;

void remember(const at::Tensor &tensor, Value value) {
  auto *storage = tensor.storage().unsafeGetStorageImpl();
  vgpu_was_copied(storage->data()); /* and written to since */
  std::lock_guard<std::mutex> guard(computed_lock);
  if (value == Value::unknown) {
    computed.erase(storage);
    return;
  }
  static size_t next_look = 4096;
  if (computed.size() >= next_look) {
    for (auto at = computed.begin(); at != computed.end();)
      at = at->second.storage.expired() ? computed.erase(at) : std::next(at);
    next_look = std::max<size_t>(4096, 2 * computed.size());
  }
  computed.try_emplace(storage, Known{tensor.storage().getWeakStorageImpl(), value}).first->second.value = value;
}

void remember(const at::Tensor &tensor, bool is_right, bool assumed = false) {
  remember(tensor, !is_right ? Value::unknown : assumed ? Value::assumed : Value::right);
}

/* Of a tensor that nobody can read: whether all of its flags are set. */
bool holds(const at::Tensor &tensor) {
  std::lock_guard<std::mutex> guard(computed_lock);
  auto found = computed.find(tensor.storage().unsafeGetStorageImpl());
  return found != computed.end() && found->second.value == Value::holds;
}

Value value_of(const at::Tensor &tensor) {
  auto *storage = tensor.storage().unsafeGetStorageImpl();
  {
    std::lock_guard<std::mutex> guard(computed_lock);
    auto found = computed.find(storage); /* the weak pointer keeps a dead one's place, so none can take it */
    if (found != computed.end()) return found->second.value == Value::holds ? Value::unknown : found->second.value;
  }
  if (!tensor.numel()) return Value::right;
  if (!vgpu_was_copied(storage->data())) return Value::unknown;
  remember(tensor, true);
  return Value::right;
}

} // namespace

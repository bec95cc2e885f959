// A small array with one entry per member of a communicator, which asks for no memory where members are few.
// Used by this folder only.
#pragma once

#include <array>
#include <vector>

namespace xccl {

template <class T>
class PerMember {
 public:
  explicit PerMember(int members) : many_(members > few ? static_cast<size_t>(members) : 0) {}

  T* data() { return many_.empty() ? few_.data() : many_.data(); }
  T& operator[](int member) { return data()[member]; }

 private:
  static constexpr int few = 64;
  std::array<T, few> few_;
  std::vector<T> many_;
};

}  // namespace xccl

// An intrusive list: its elements carry the links, so that queueing a request allocates nothing, and taking one out
// of the middle is as cheap as from the front. Used by p2p/ only.
#pragma once

#include <cstdint>

namespace xccl {

template <class T>
struct Linked {
  T* previous = nullptr;
  T* next = nullptr;
};

template <class T>
class List {
 public:
  bool empty() const { return !first_; }
  T* front() const { return first_; }

  void push_back(T& item) { insert_before(nullptr, item); }
  // Before `place`, or at the end for null.
  void insert_before(T* place, T& item) {
    item.next = place;
    item.previous = place ? place->previous : last_;
    (item.previous ? item.previous->next : first_) = &item;
    (item.next ? item.next->previous : last_) = &item;
  }
  // In its place by a number that grows along the list: nearly always at the end.
  void insert(T& item, uint64_t T::* number) {
    T* before = last_;
    while (before && before->*number > item.*number) before = before->previous;
    insert_before(before ? before->next : first_, item);
  }
  void remove(T& item) {
    (item.previous ? item.previous->next : first_) = item.next;
    (item.next ? item.next->previous : last_) = item.previous;
    item.next = item.previous = nullptr;
  }

 private:
  T* first_ = nullptr;
  T* last_ = nullptr;
};

}  // namespace xccl

#include "collective/reduction.hpp"

#include <optional>

namespace xccl {

void Reduction::receive(Exchange& exchange, const std::byte* own, std::byte* out, uint64_t bytes) {
  exchange.await_all();
  if (bytes == 0) return;
  bool fetching = false;
  for (int member = 0; member < comm_.size(); ++member) {
    rows_[member] = member == comm_.rank() ? own : exchange.reach(member, bytes);
    if (rows_[member]) continue;
    if (!fetching) fetched_.resize(static_cast<size_t>(comm_.size()) * bytes);
    fetching = true;
    std::byte* to = fetched_.data() + static_cast<size_t>(member) * bytes;
    exchange.pull(member, to, bytes);
    rows_[member] = to;
  }
  if (fetching) exchange.quiet();
  std::optional<FloatEnvironment> environment;
  if (op_ == ReduceOp::sum && type_ != ElementType::int64) environment.emplace();
  kernel_(out, rows_.data(), comm_.size(), bytes / element_bytes(type_));
}

}  // namespace xccl

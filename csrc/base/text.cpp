#include "base/text.hpp"

#include <cstdio>

namespace xccl {

std::string rank_list(const std::vector<int>& ranks) {
  constexpr size_t shown = 16;
  std::string out = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size() && i < shown; ++i) {
    if (i) out += ", ";
    out += std::to_string(ranks[i]);
  }
  if (ranks.size() > shown) out += text(" and ", ranks.size() - shown, " more");
  return out;
}

std::string byte_count(uint64_t bytes) {
  static const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  while (value >= 1024 && unit < 4) value /= 1024, ++unit;
  char out[32];
  std::snprintf(out, sizeof out, unit == 0 || value >= 100 ? "%.0f %s" : "%.1f %s", value, units[unit]);
  return out;
}

}  // namespace xccl

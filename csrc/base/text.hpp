// Small helpers that turn values into text for error messages.
// Used by every layer, off the hot path only. Not here: parsing (config.cpp).
#pragma once

#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

namespace xccl {

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// "rank 3" or "ranks 1, 2, 5 and 9 more": long lists are cut, since 255 numbers help nobody.
std::string rank_list(const std::vector<int>& ranks);

// 1536 -> "1.5 KiB".
std::string byte_count(uint64_t bytes);

}  // namespace xccl

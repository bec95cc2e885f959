// The bytes of a control segment: what every rank shows every other rank in host memory. The one place that
// declares them (records of collectives: sync/record_layout.hpp; drawn in docs/memory-layout.md).
//
//   offset 0     header      who and how large; written once by the owner, `ready` last
//         64     bell        doorbell, and on the next line the alarm; written by anybody
//        192     status      what the owner is doing; written by the owner, read by peers and from outside
//        256     peer flags  one word per rank: dead, failed; set by anybody who knows, never cleared
//        ...     lines       records and barrier words, each written by one peer (allocated at run time)
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "memory/doorbell.hpp"

namespace xccl {

constexpr uint64_t cache_line = 64;
constexpr uint64_t control_magic = 0x4c4f52544e4f4358;  // "XCONTROL"
constexpr uint32_t layout_version = 4;                  // raised with every change of any *_layout.hpp
constexpr uint64_t control_segment_bytes = uint64_t{64} << 20;  // address space; memory is taken line by line

// Written by the owner before it sends the parcel that lets peers attach (group/bootstrap.hpp). A reader fetches
// `ready` first (acquire): it is stored last (release), so that the rest is whole.
struct alignas(cache_line) ControlHeader {
  uint64_t magic;
  uint32_t version;
  uint32_t size;  // ranks in the job
  int32_t rank;
  uint32_t header_bytes;  // where the lines begin
  uint64_t segment_bytes;
  std::atomic<uint64_t> ready;  // control_magic once the rest is written
};

struct alignas(cache_line) Bell {
  Doorbell doorbell;  // byte 0
  // A line of its own: others read the doorbell with every record that they send, and the owner asks for the alarm by an
  // atomic addition at the end of every call (Communicator::require_trust), which would take the line from them.
  // Nonzero: a peer flag has been set since the owner last looked. Anybody stores 1, the owner stores 0 and then
  // reads the flags: a flag set later raises the alarm again, so none is missed.
  alignas(cache_line) std::atomic<uint64_t> alarm;  // byte 64
};

// Of a rank, or of a member of a communicator (group/communicator_layout.hpp): only there `failed`, which is final.
enum class RankState : uint64_t { running = 1, closed = 2, failed = 3 };

// Relaxed stores by the owner; readers want a hint for a message, except `state`, which is stored with release.
struct alignas(cache_line) StatusLine {
  std::atomic<uint64_t> state;        // RankState
  std::atomic<uint64_t> op[2];        // name of the latest operation, up to 16 characters
  std::atomic<uint64_t> seq;          // its number
  std::atomic<uint64_t> inside;       // 1 while it is under way
  std::atomic<uint64_t> since_ns;     // when it began or ended, CLOCK_MONOTONIC
  std::atomic<uint64_t> waiting_for;  // 1 + rank looked at, 0: nobody
};

// failed: in one communicator at least; its seats tell in which. dead: wherever it had not failed before.
enum class PeerFlag : uint64_t { fine = 0, failed = 1, dead = 2 };

struct ControlFixed {
  ControlHeader header;
  Bell bell;
  StatusLine status;
};

constexpr uint64_t bell_offset = offsetof(ControlFixed, bell);
constexpr uint64_t doorbell_offset = bell_offset + offsetof(Bell, doorbell);
constexpr uint64_t alarm_offset = bell_offset + offsetof(Bell, alarm);
constexpr uint64_t status_offset = offsetof(ControlFixed, status);
constexpr uint64_t peer_flags_offset = sizeof(ControlFixed);

constexpr uint64_t peer_flag_offset(int rank) { return peer_flags_offset + 8 * static_cast<uint64_t>(rank); }

static_assert(sizeof(ControlHeader) == 64 && sizeof(Bell) == 128 && sizeof(StatusLine) == 64);
static_assert(bell_offset == 64 && status_offset == 192 && peer_flags_offset == 256);
static_assert(std::is_standard_layout_v<ControlFixed>);
static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<uint32_t>::is_always_lock_free);

}  // namespace xccl

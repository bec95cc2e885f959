// The bytes of a control segment: what every rank shows every other rank in host memory. The one place that
// declares them (records of collectives: sync/record_layout.hpp; drawn in docs/memory-layout.md).
//
//   offset 0     header      who and how large; written once by the owner, `ready` last
//         64     bell        doorbell, and on the next line the alarm; written by anybody
//        192     status      what the owner is doing; written by the owner, read by peers and from outside
//        256     wait        the long wait that it is in; written and read like the status
//        320     job         name of the job; written once by the owner
//        448     peer flags  one word per rank: dead, failed; set by anybody who knows, never cleared
//        ...     peer waits  32 bytes per rank: how the owner waits, and has waited, for it; written by the owner
//        ...     lines       records and barrier words, each written by one peer (allocated at run time)
//
// In a memory file (posix_shm) it is the first region, at offset 0: there group/observe.hpp reads it from outside.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "memory/doorbell.hpp"

namespace xccl {

constexpr uint64_t cache_line = 64;
constexpr uint64_t control_magic = 0x4c4f52544e4f4358;  // "XCONTROL"
constexpr uint32_t layout_version = 9;                  // raised with every change of any *_layout.hpp
constexpr uint64_t control_segment_bytes = uint64_t{64} << 20;  // address space; memory is taken line by line

// Written by the owner before it sends the parcel that lets peers attach (group/bootstrap.hpp). A reader fetches
// `ready` first (acquire): it is stored last (release), so that the rest is whole.
struct alignas(cache_line) ControlHeader {
  uint64_t magic;
  uint32_t version;
  uint32_t size;  // ranks in the job
  int32_t rank;
  uint32_t header_bytes;  // where the peer flags begin
  uint64_t segment_bytes;
  std::atomic<uint64_t> ready;  // control_magic once the rest is written
  uint64_t pid;                 // of the owner, in its own PID namespace
  // The same in all ranks that have met, and in no other job, whatever its name; 0 until they have. Relaxed: it tells
  // whoever looks from outside what belongs together.
  std::atomic<uint64_t> meeting;
};

struct alignas(cache_line) Bell {
  Doorbell doorbell;  // byte 0
  // A line of its own: others read the doorbell with every record that they send, and the owner asks for the alarm by an
  // atomic addition at the end of every call (Communicator::require_trust), which would take the line from them.
  // Nonzero: a peer flag has been set since the owner last looked. Anybody stores 1, the owner stores 0 and then
  // reads the flags: a flag set later raises the alarm again, so none is missed.
  alignas(cache_line) std::atomic<uint64_t> alarm;  // byte 64
};

// Of a rank: running, then closed. Of a member of a communicator (group/communicator_layout.hpp): running, then closed;
// or failed in a call, in which case it may still take part in shrink; or failed and left for good, by abort or close.
enum class RankState : uint64_t { running = 1, closed = 2, failed = 3, left = 4 };

// Relaxed stores by the owner; readers want a hint for a message, except `state`, which is stored with release. With
// several threads, each in a communicator of its own, the latest to write is the one that shows.
struct alignas(cache_line) StatusLine {
  std::atomic<uint64_t> state;        // RankState
  std::atomic<uint64_t> op[2];        // name of the latest operation that entered, up to 16 characters
  std::atomic<uint64_t> seq;          // its number
  std::atomic<uint64_t> inside;       // members of its communicator while it is under way, else 0
  std::atomic<uint64_t> since_ns;     // when it began or ended, CLOCK_MONOTONIC
  std::atomic<uint64_t> array_bytes;  // memory that the application area takes
};

// Relaxed, like the status. Written when a wait outlasts its spin, so that short ones pay nothing for it.
struct alignas(cache_line) WaitLine {
  std::atomic<uint64_t> since_ns;  // when the wait began, CLOCK_MONOTONIC; 0: in none
  std::atomic<uint64_t> phase[3];  // of the operation, up to 24 characters
};

struct alignas(cache_line) JobName {
  uint64_t length;  // of the whole name, of which `text` may be the beginning
  char text[120];
};

// Of the owner for one other rank, in any communicator; its own entry is for waits for nobody in particular (a receive
// from any source). Relaxed: only the owner writes, and readers want numbers that are true soon. It adds by atomic
// additions nevertheless, since its threads may wait in several communicators at once.
struct PeerWait {
  std::atomic<uint64_t> count;       // waits that outlasted their spin
  std::atomic<uint64_t> total_ns;    // that they took in all
  std::atomic<uint64_t> longest_ns;  // of them
  std::atomic<uint64_t> since_ns;    // when the wait began that goes on for this rank now; 0: none
};

// failed: in one communicator at least; its seats tell in which. dead: wherever it had not failed before.
enum class PeerFlag : uint64_t { fine = 0, failed = 1, dead = 2 };

struct ControlFixed {
  ControlHeader header;
  Bell bell;
  StatusLine status;
  WaitLine wait;
  JobName job;
};

constexpr uint64_t bell_offset = offsetof(ControlFixed, bell);
constexpr uint64_t doorbell_offset = bell_offset + offsetof(Bell, doorbell);
constexpr uint64_t alarm_offset = bell_offset + offsetof(Bell, alarm);
constexpr uint64_t status_offset = offsetof(ControlFixed, status);
constexpr uint64_t peer_flags_offset = sizeof(ControlFixed);

constexpr uint64_t peer_flag_offset(int rank) { return peer_flags_offset + 8 * static_cast<uint64_t>(rank); }
// In a job of `size` ranks.
constexpr uint64_t peer_waits_offset(int size) {
  return (peer_flag_offset(size) + cache_line - 1) / cache_line * cache_line;
}
constexpr uint64_t lines_offset(int size) {
  return (peer_waits_offset(size) + sizeof(PeerWait) * static_cast<uint64_t>(size) + cache_line - 1) /
         cache_line * cache_line;
}

static_assert(sizeof(ControlHeader) == 64 && sizeof(Bell) == 128 && sizeof(StatusLine) == 64);
static_assert(sizeof(WaitLine) == 64 && sizeof(JobName) == 128 && sizeof(PeerWait) == 32);
static_assert(bell_offset == 64 && status_offset == 192 && peer_flags_offset == 448);
static_assert(offsetof(ControlHeader, magic) == 0 && offsetof(ControlHeader, version) == 8,
              "in every version, so that each can tell the others'");
static_assert(std::is_standard_layout_v<ControlFixed>);
static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<uint32_t>::is_always_lock_free);

}  // namespace xccl

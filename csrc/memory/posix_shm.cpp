#include "memory/posix_shm.hpp"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include "base/machine.hpp"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25  // since Linux 6.1; older kernels answer EINVAL, which is as good as "no"
#endif

namespace xccl {
namespace {

// What a rank tells the others about its memory file. Copied out of the parcel, then checked, then used.
struct FileCard {
  uint64_t magic;
  uint64_t bytes;
};
constexpr uint64_t file_magic = 0x314d48534c434358;             // "XCCLSHM1"
constexpr uint64_t address_space_for_all = uint64_t{64} << 40;  // of the 128 TiB that a process has
constexpr uint64_t address_space_for_one = uint64_t{1} << 40;   // no machine here has more memory

int make_file(uint64_t bytes) {
  const int fd = memfd_create("xccl", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) fail_errno("creating a memory file (memfd_create)", errno);
  if (ftruncate(fd, static_cast<off_t>(bytes)) != 0) {
    const int error = errno;
    close(fd);
    if (error == EFBIG || error == EINVAL)
      fail(Status::OutOfMemory, "cannot reserve a sparse file of ", byte_count(bytes),
           "; set XCCL_ADDRESS_SPACE lower or raise ulimit -f");
    fail_errno("sizing a memory file", error);
  }
  if (fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) != 0) {
    const int error = errno;
    close(fd);
    fail_errno("sealing a memory file", error);
  }
  return fd;
}

uint64_t chosen_address_space(const JobSpec& spec, const Config& config) {
  const uint64_t bytes =
      config.address_space ? config.address_space : PosixShm::default_address_space(spec.size);
  return round_up(std::max(bytes, huge_page), huge_page);
}

}  // namespace

uint64_t PosixShm::default_address_space(int size) {
  uint64_t bytes =
      std::min(address_space_for_one, address_space_for_all / std::bit_ceil(static_cast<uint64_t>(size)));
  // ulimit -v counts every rank's mapping; half of it is left to the program.
  if (const auto limit = address_space_limit())
    bytes = std::min(bytes, *limit / 2 / static_cast<uint64_t>(size));
  return round_down(std::max(bytes, huge_page), huge_page);
}

PosixShm::PosixShm(const JobSpec& spec, const Config& config)
    : HostMemory(config.direct),
      rank_(spec.rank),
      huge_pages_(config.huge_pages),
      file_(make_file(chosen_address_space(spec, config))),
      own_(std::make_shared<Mapping>(file_.get(), chosen_address_space(spec, config))),
      ranges_(own_->bytes()) {
  peers_[rank_] = own_;
}

Region PosixShm::allocate(uint64_t bytes) {
  bytes = round_up(std::max<uint64_t>(bytes, 1), page_granule);
  const std::lock_guard lock(mutex_);
  const auto offset = ranges_.allocate(bytes, bytes >= huge_page ? huge_page : page_granule);
  if (!offset)
    fail(Status::OutOfMemory, "no ", byte_count(bytes), " of address space left: ", byte_count(own_->bytes()),
         " are reserved per rank, ", byte_count(ranges_.free_bytes()), " are free, the largest piece is ",
         byte_count(ranges_.largest_free()), "; raise XCCL_ADDRESS_SPACE");
  return Region{RegionKey{{*offset, bytes}}, bytes, own_->base() + *offset};
}

void PosixShm::commit(const Region& region, uint64_t offset, uint64_t bytes) {
  if (bytes == 0) return;
  const uint64_t first = round_down(offset, page_granule), last = round_up(offset + bytes, page_granule);
  require_headroom(last - first);
  const uint64_t start = region.key.words[0];
  if (huge_pages_) take_huge_pages(start + first, start + last);
  take(start + first, last - first);
}

// Without this a full machine would answer a later store with SIGBUS.
void PosixShm::take(uint64_t offset, uint64_t bytes) {
  while (fallocate(file_.get(), 0, static_cast<off_t>(offset), static_cast<off_t>(bytes)) != 0) {
    if (errno == ENOSPC || errno == ENOMEM)
      fail(Status::OutOfMemory, "the kernel refuses ", byte_count(bytes),
           " of shared memory: the limit of a memory cgroup, or of the machine, was reached meanwhile");
    if (errno != EINTR) fail_errno("taking memory (fallocate)", errno);
  }
}

// Best effort. The kernel makes a huge page of a range that has at least one page, and faster of one than of 512.
void PosixShm::take_huge_pages(uint64_t first, uint64_t last) {
  const uint64_t begin = round_up(first, huge_page), end = round_down(last, huge_page);
  for (uint64_t page = begin; page < end; page += huge_page) {
    take(page, 4096);
    // A page that is mapped here already makes the kernel's work another ten times shorter.
    std::atomic_ref<uint64_t>(*reinterpret_cast<uint64_t*>(own_->base() + page))
        .load(std::memory_order_relaxed);
  }
  if (begin < end) madvise(own_->base() + begin, end - begin, MADV_COLLAPSE);
}

void PosixShm::decommit(const Region& region, uint64_t offset, uint64_t bytes) {
  const uint64_t first = round_up(offset, page_granule), last = round_down(offset + bytes, page_granule);
  if (first >= last) return;
  fallocate(file_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
            static_cast<off_t>(region.key.words[0] + first), static_cast<off_t>(last - first));
}

void PosixShm::free(const Region& region) {
  decommit(region, 0, region.bytes);
  const std::lock_guard lock(mutex_);
  ranges_.free(region.key.words[0], region.bytes);
}

uint64_t PosixShm::committed_bytes() const {
  struct stat facts;
  if (fstat(file_.get(), &facts) != 0) fail_errno("reading the size of a memory file", errno);
  return static_cast<uint64_t>(facts.st_blocks) * 512;
}

Parcel PosixShm::invite() {
  const FileCard card{file_magic, own_->bytes()};
  Parcel parcel;
  parcel.bytes.assign(reinterpret_cast<const char*>(&card), sizeof card);
  Fd copy(fcntl(file_.get(), F_DUPFD_CLOEXEC, 0));
  if (!copy) fail_errno("duplicating a descriptor", errno);
  parcel.fds.push_back(std::move(copy));
  return parcel;
}

void PosixShm::accept(int rank, Parcel parcel) {
  if (rank == rank_) return;
  FileCard card;
  if (parcel.bytes.size() != sizeof card || parcel.fds.size() != 1)
    fail(Status::Failure, "rank ", rank, " sent a malformed invitation");
  std::memcpy(&card, parcel.bytes.data(), sizeof card);
  struct stat facts;
  const int seals = fcntl(parcel.fds[0].get(), F_GET_SEALS);
  // Without the seals or the size it claims, the file could shrink under us and every access be a SIGBUS.
  if (card.magic != file_magic || seals < 0 ||
      (seals & (F_SEAL_SHRINK | F_SEAL_SEAL)) != (F_SEAL_SHRINK | F_SEAL_SEAL) ||
      fstat(parcel.fds[0].get(), &facts) != 0 || static_cast<uint64_t>(facts.st_size) != card.bytes ||
      card.bytes % huge_page != 0)
    fail(Status::Failure, "rank ", rank, " sent something that is not an XCCL memory file");
  peers_[rank] = std::make_shared<Mapping>(parcel.fds[0].get(), card.bytes);
}

RemoteRegion PosixShm::attach(int rank, const RegionKey& key) {
  const auto peer = peers_.find(rank);
  const auto [offset, bytes] = std::pair{key.words[0], key.words[1]};
  if (peer == peers_.end()) fail(Status::InvalidArgument, "rank ", rank, " has not joined");
  if (offset > peer->second->bytes() || bytes > peer->second->bytes() - offset)
    fail(Status::InvalidArgument, "rank ", rank, " names a region of ", byte_count(bytes), " at ", offset,
         ", outside its memory of ", byte_count(peer->second->bytes()));
  std::byte* address = peer->second->base() + offset;
  return RemoteRegion{rank, bytes, shown(address), address, peer->second};
}

void PosixShm::detach(RemoteRegion& region) { region = RemoteRegion{}; }

std::string PosixShm::why_not() {
  const Fd file(memfd_create("xccl-probe", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!file) return text("memfd_create: ", std::strerror(errno));
  const Fd self(static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0)));
  if (!self) return text("pidfd_open (Linux 5.3): ", std::strerror(errno));
  return "";
}

}  // namespace xccl

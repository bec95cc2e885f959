// How the ranks of a job find each other, once, before any memory is shared: an all-gather of parcels (bytes and
// descriptors). A seam of its own, because between hosts it will be something else.
// Called by group/world.cpp.
#pragma once

#include <string>
#include <vector>

#include "base/clock.hpp"
#include "base/parcel.hpp"
#include "memory/provider.hpp"

namespace xccl {

// Every rank's parcel, in rank order. All parcels carry the same number of descriptors.
// Errors: Timeout naming the ranks that did not arrive, PeerLost naming one that died meanwhile, Mismatch when
// ranks disagree about the size of the job or the version of XCCL, InvalidArgument when the job's name is taken.
std::vector<Parcel> bootstrap_unix(const JobSpec& spec, Parcel mine,
                                   const Deadline& deadline);  // processes of a host
std::vector<Parcel> bootstrap_local(const JobSpec& spec, Parcel mine,
                                    const Deadline& deadline);  // threads of a process

}  // namespace xccl

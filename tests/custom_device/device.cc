// A device without hardware, for tests: the runtime and the collective communication of Paddle's custom-device
// interface (paddle/phi/backends/device_ext.h), written from that header. It has hardly any kernels (kernels.cc): Paddle
// runs each operator on the CPU, with copies from and to the device.
//
// Device memory is an address range that nobody may touch; its contents lie elsewhere. A device pointer that is used on
// the host faults, and a host pointer that is used as a device pointer is refused, as is memory that is not allocated.
// Each stream is a thread that works through its queue, so what needs a synchronisation and has none is seen.
//
// Set when compiled: DEVICE_TYPE. In the environment: TEST_DEVICE_DELAY_US, how long every asynchronous operation waits
// before it starts; TEST_DEVICE_MEMORY, bytes of each device; TEST_DEVICE_TIMEOUT_S, how long a collective operation
// waits for the other processes; TEST_DEVICE_COUNTERS, a file that each process adds its counters to at its end;
// ASCEND_RT_VISIBLE_DEVICES, as on Ascend; TEST_DEVICE_LOG=1, a line on standard error for each copy.

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "paddle/phi/backends/device_ext.h"
#include "paddle/phi/common/bfloat16.h"
#include "paddle/phi/common/float16.h"

void RegisterKernels();  // kernels.cc

namespace {

constexpr int kDevices = 2;
constexpr size_t kAlignment = 256;
constexpr unsigned char kUnwritten = 0xff;  // as float32, float16 and bfloat16: not a number

size_t FromEnvironment(const char* name, size_t otherwise) {
  const char* text = std::getenv(name);
  return text ? std::strtoull(text, nullptr, 10) : otherwise;
}

// How many devices ASCEND_RT_VISIBLE_DEVICES leaves. As under Ascend's plugin, a process counts them from 0.
size_t VisibleDevices() {
  const char* text = std::getenv("ASCEND_RT_VISIBLE_DEVICES");
  const std::string names = text ? text : "";
  return text ? std::min<size_t>(kDevices, 1 + std::count(names.begin(), names.end(), ',')) : kDevices;
}

// ---------------------------------------------------------------------------------------------- what is counted

// In the order of COUNTERS in plugin.py.
enum Counter {
  kHostToDevice,
  kDeviceToHost,
  kDeviceToDevice,
  kAllocations,
  kCollectives,
  kSynchronisations,
  kRefused,
  kCounters
};
std::atomic<uint64_t> counters[kCounters];

C_Status Refuse(const char* what, const void* pointer, size_t size) {
  ++counters[kRefused];
  std::fprintf(stderr, "test device: %s: %p, %zu bytes\n", what, pointer, size);
  return C_ERROR;
}

// ------------------------------------------------------------------------------------------------------- memory

class Memory {
 public:
  void Reserve(size_t capacity) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    capacity_ = capacity;
    addresses_ = static_cast<char*>(mmap(nullptr, capacity, PROT_NONE, flags, -1, 0));
    contents_ = static_cast<char*>(mmap(nullptr, capacity, PROT_READ | PROT_WRITE, flags, -1, 0));
    if (addresses_ == MAP_FAILED || contents_ == MAP_FAILED) std::abort();
  }

  // The first gap that is wide enough, or nullptr.
  void* Allocate(size_t size) {
    std::lock_guard<std::mutex> lock(mutex_);
    const size_t rounded = (size + kAlignment - 1) / kAlignment * kAlignment;
    char* gap = addresses_;
    for (const auto& [start, length] : live_) {
      if (static_cast<size_t>(start - gap) >= rounded) break;
      gap = start + length;
    }
    if (rounded > capacity_ - (gap - addresses_)) return nullptr;
    live_[gap] = rounded;
    used_ += rounded;
    std::memset(contents_ + (gap - addresses_), kUnwritten, size);
    return gap;
  }

  bool Free(void* pointer) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = live_.find(static_cast<char*>(pointer));
    if (found == live_.end()) return false;
    used_ -= found->second;
    live_.erase(found);
    return true;
  }

  // Where the contents of [pointer, pointer + size) are; nullptr unless all of it is allocated here.
  char* Contents(const void* pointer, size_t size) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto* address = static_cast<char*>(const_cast<void*>(pointer));
    auto after = live_.upper_bound(address);
    if (after == live_.begin()) return nullptr;
    auto [start, length] = *std::prev(after);
    return address + size <= start + length ? contents_ + (address - addresses_) : nullptr;
  }

  bool Has(const void* pointer) const { return pointer >= addresses_ && pointer < addresses_ + capacity_; }
  size_t capacity() const { return capacity_; }
  size_t unused() const { return capacity_ - used_; }

 private:
  std::mutex mutex_;
  std::map<char*, size_t> live_;
  char* addresses_ = nullptr;
  char* contents_ = nullptr;
  size_t capacity_ = 0;
  std::atomic<size_t> used_{0};
};

Memory memories[kDevices];

bool IsHost(const void* pointer) {
  return std::none_of(memories, memories + kDevices, [=](const Memory& memory) { return memory.Has(pointer); });
}

// ------------------------------------------------------------------------------------------- streams and events

class Stream {
 public:
  explicit Stream(int device) : device_(device), thread_([this] { Work(); }) {}

  ~Stream() {
    Push(nullptr);
    thread_.join();
  }

  // `task` returns whether it succeeded; what comes after a failure is not run.
  void Push(std::function<bool()> task) {
    std::lock_guard<std::mutex> lock(mutex_);
    tasks_.push_back(std::move(task));
    changed_.notify_all();
  }

  C_Status Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return tasks_.empty(); });
    return failed_ ? C_ERROR : C_SUCCESS;
  }

  bool Idle() {
    std::lock_guard<std::mutex> lock(mutex_);
    return tasks_.empty();
  }

  int device() const { return device_; }

 private:
  void Work() {
    static const std::chrono::microseconds delay(FromEnvironment("TEST_DEVICE_DELAY_US", 0));
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return !tasks_.empty(); });
      auto task = tasks_.front();  // stays in the queue until it is done: the stream is not idle
      lock.unlock();
      if (!task) return;
      if (delay.count()) std::this_thread::sleep_for(delay);
      if (!failed_ && !task()) failed_ = true;
      lock.lock();
      tasks_.pop_front();
      changed_.notify_all();
    }
  }

  const int device_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<bool()>> tasks_;
  std::atomic<bool> failed_{false};
  std::thread thread_;
};

class Event {
 public:
  uint64_t Record() {
    std::lock_guard<std::mutex> lock(mutex_);
    return ++recorded_;
  }

  void Reach(uint64_t number) {
    std::lock_guard<std::mutex> lock(mutex_);
    reached_ = std::max(reached_, number);
    changed_.notify_all();
  }

  void Wait(uint64_t number) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [=] { return reached_ >= number; });
  }

  uint64_t recorded() {
    std::lock_guard<std::mutex> lock(mutex_);
    return recorded_;
  }

  bool Reached() {
    std::lock_guard<std::mutex> lock(mutex_);
    return reached_ == recorded_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t recorded_ = 0, reached_ = 0;
};

using EventPointer = std::shared_ptr<Event>;  // a queue may outlive Paddle's handle

Stream* StreamOf(C_Stream stream) { return reinterpret_cast<Stream*>(stream); }
EventPointer& EventOf(C_Event event) { return *reinterpret_cast<EventPointer*>(event); }

std::mutex streams_mutex;
std::vector<Stream*> streams;
pid_t owner;  // a forked process has no threads of streams
thread_local int current_device = 0;

C_Status WaitForDevice(int device) {
  ++counters[kSynchronisations];
  std::vector<Stream*> waiting;
  {
    std::lock_guard<std::mutex> lock(streams_mutex);
    waiting = streams;
  }
  C_Status status = C_SUCCESS;
  for (Stream* stream : waiting) {
    if (stream->device() == device && stream->Wait() != C_SUCCESS) status = C_ERROR;
  }
  return status;
}

C_Status Initialize() {
  owner = getpid();
  for (auto& memory : memories) memory.Reserve(FromEnvironment("TEST_DEVICE_MEMORY", size_t{4} << 30));
  return C_SUCCESS;
}

// One line a process, in the order of Counter.
void WriteCounters() {
  const char* path = std::getenv("TEST_DEVICE_COUNTERS");
  std::FILE* file = path ? std::fopen(path, "a") : nullptr;
  if (!file) return;
  std::string line;
  for (auto& counter : counters) line += std::to_string(counter) + " ";
  std::fprintf(file, "%s\n", line.c_str());
  std::fclose(file);
}

C_Status Finalize() {
  if (getpid() != owner) return C_SUCCESS;
  WriteCounters();
  std::lock_guard<std::mutex> lock(streams_mutex);
  for (Stream* stream : streams) delete stream;
  streams.clear();
  return C_SUCCESS;
}

C_Status SetDevice(const C_Device device) {
  if (device->id < 0 || device->id >= kDevices) return C_ERROR;
  current_device = device->id;
  return C_SUCCESS;
}

C_Status GetDevice(const C_Device device) {
  device->id = current_device;
  return C_SUCCESS;
}

C_Status CreateStream(const C_Device device, C_Stream* stream) {
  auto* made = new Stream(device->id);
  std::lock_guard<std::mutex> lock(streams_mutex);
  streams.push_back(made);
  *stream = reinterpret_cast<C_Stream>(made);
  return C_SUCCESS;
}

C_Status DestroyStream(const C_Device, C_Stream stream) {
  {
    std::lock_guard<std::mutex> lock(streams_mutex);
    auto found = std::find(streams.begin(), streams.end(), StreamOf(stream));
    if (found == streams.end()) return C_SUCCESS;  // Finalize was here
    streams.erase(found);
  }
  delete StreamOf(stream);
  return C_SUCCESS;
}

C_Status CreateEvent(const C_Device, C_Event* event) {
  *event = reinterpret_cast<C_Event>(new EventPointer(std::make_shared<Event>()));
  return C_SUCCESS;
}

C_Status DestroyEvent(const C_Device, C_Event event) {
  delete &EventOf(event);
  return C_SUCCESS;
}

C_Status RecordEvent(const C_Device, C_Stream stream, C_Event event) {
  StreamOf(stream)->Push([event = EventOf(event), number = EventOf(event)->Record()] {
    event->Reach(number);
    return true;
  });
  return C_SUCCESS;
}

C_Status StreamWaitEvent(const C_Device, C_Stream stream, C_Event event) {
  StreamOf(stream)->Push([event = EventOf(event), number = EventOf(event)->recorded()] {
    event->Wait(number);
    return true;
  });
  return C_SUCCESS;
}

C_Status SynchronizeEvent(const C_Device, C_Event event) {
  ++counters[kSynchronisations];
  EventOf(event)->Wait(EventOf(event)->recorded());
  return C_SUCCESS;
}

C_Status SynchronizeStream(const C_Device, C_Stream stream) {
  ++counters[kSynchronisations];
  return StreamOf(stream)->Wait();
}

C_Status AddCallback(const C_Device device, C_Stream stream, C_Callback callback, void* user_data) {
  StreamOf(stream)->Push([=] {
    C_Status status = C_SUCCESS;
    callback(device, stream, user_data, &status);
    return status == C_SUCCESS;
  });
  return C_SUCCESS;
}

// ------------------------------------------------------------------------------------- allocation and copies

C_Status Allocate(const C_Device device, void** pointer, size_t size) {
  ++counters[kAllocations];
  *pointer = memories[device->id].Allocate(size);
  return *pointer ? C_SUCCESS : C_FAILED;
}

C_Status Deallocate(const C_Device device, void* pointer, size_t size) {
  WaitForDevice(device->id);
  if (!memories[device->id].Free(pointer)) return Refuse("freed, but not allocated", pointer, size);
  return C_SUCCESS;
}

C_Status AllocateHost(const C_Device, void** pointer, size_t size) {
  *pointer = std::malloc(size);
  return *pointer ? C_SUCCESS : C_FAILED;
}

C_Status DeallocateHost(const C_Device, void* pointer, size_t) {
  std::free(pointer);
  return C_SUCCESS;
}

using Run = std::function<void(std::function<bool()>)>;

void Now(std::function<bool()> task) { task(); }
Run On(C_Stream stream) {
  return [stream](std::function<bool()> task) { StreamOf(stream)->Push(std::move(task)); };
}

constexpr int kHost = -1;  // in the place of a device's number

// Where the bytes at `pointer` are; nullptr unless all of them are on `device`, or on the host if that is kHost.
char* Bytes(int device, const void* pointer, size_t size) {
  if (device != kHost) return memories[device].Contents(pointer, size);
  return IsHost(pointer) ? static_cast<char*>(const_cast<void*>(pointer)) : nullptr;
}

void CountCopy(int to, int from, size_t size) {
  ++counters[from == kHost ? kHostToDevice : to == kHost ? kDeviceToHost : kDeviceToDevice];
  static const bool log = FromEnvironment("TEST_DEVICE_LOG", 0);
  if (log) std::fprintf(stderr, "test device: copy from %d to %d: %zu bytes\n", from, to, size);
}

C_Status Copy(const Run& run, int to, void* target, int from, const void* source, size_t size) {
  if (!size) return C_SUCCESS;
  char* written = Bytes(to, target, size);
  char* read = Bytes(from, source, size);
  if (!written) return Refuse(to == kHost ? "copy to no host memory" : "copy to no device memory", target, size);
  if (!read) return Refuse(from == kHost ? "copy from no host memory" : "copy from no device memory", source, size);
  CountCopy(to, from, size);
  if (from == kHost) {  // as Ascend's plugin does, keep what is there now
    run([written, kept = std::vector<char>(read, read + size)] {
      return std::memcpy(written, kept.data(), kept.size()) != nullptr;
    });
  } else {
    run([=] { return std::memmove(written, read, size) != nullptr; });
  }
  return C_SUCCESS;
}

// ------------------------------------------------------------------- collective communication on one machine

constexpr size_t kSlot = 1 << 20;
constexpr size_t kIdSize = 64;

// In memory that all processes of a communicator share; a slot of kSlot bytes for each of them follows.
struct Board {
  std::atomic<uint32_t> joined, arrived, round;
  char padding[52];
};

class Communicator {
 public:
  Communicator(const std::string& name, size_t ranks, size_t rank) : ranks_(ranks), rank_(rank), name_(name) {
    const int file = shm_open(name.c_str(), O_RDWR | O_CREAT, 0600);
    if (file < 0 || ftruncate(file, size()) != 0) return;
    void* mapped = mmap(nullptr, size(), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (mapped == MAP_FAILED) return;
    board_ = static_cast<Board*>(mapped);
    ++board_->joined;
    joined_ = WaitUntil([this] { return board_->joined >= ranks_; });
    shm_unlink(name.c_str());  // no process needs the name any more; the last one's end frees the memory
  }

  ~Communicator() {
    if (board_) munmap(board_, size());
  }

  bool joined() const { return joined_; }
  size_t ranks() const { return ranks_; }
  size_t rank() const { return rank_; }
  const std::string& name() const { return name_; }
  const char* Slot(size_t rank) const { return reinterpret_cast<char*>(board_ + 1) + rank * kSlot; }

  // Show `size` bytes to all processes, slot by slot; `see(offset, bytes)` finds all processes' bytes in the slots.
  bool Exchange(const char* mine, size_t size, const std::function<void(size_t, size_t)>& see) {
    for (size_t offset = 0; offset < size; offset += kSlot) {
      const size_t bytes = std::min(kSlot, size - offset);
      std::memcpy(const_cast<char*>(Slot(rank_)), mine + offset, bytes);
      if (!Meet()) return false;
      see(offset, bytes);
      if (!Meet()) return false;
    }
    return true;
  }

 private:
  size_t size() const { return sizeof(Board) + ranks_ * kSlot; }

  bool Meet() {
    const uint32_t round = board_->round;
    if (++board_->arrived == ranks_) {
      board_->arrived = 0;
      ++board_->round;
      return true;
    }
    return WaitUntil([=] { return board_->round != round; });
  }

  template <typename Condition>
  bool WaitUntil(Condition condition) const {
    using Clock = std::chrono::steady_clock;
    const auto end = Clock::now() + std::chrono::seconds(FromEnvironment("TEST_DEVICE_TIMEOUT_S", 120));
    while (!condition()) {
      if (Clock::now() > end) {
        std::fprintf(stderr, "test device: rank %zu of %zu waited in vain for the others\n", rank_, ranks_);
        return false;
      }
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    return true;
  }

  const size_t ranks_, rank_;
  const std::string name_;
  Board* board_ = nullptr;
  bool joined_ = false;
};

Communicator* CommunicatorOf(C_CCLComm comm) { return reinterpret_cast<Communicator*>(comm); }

template <typename T, typename Wide = T>
void ReduceSlots(const Communicator& comm, C_CCLReduceOp op, char* target, size_t bytes) {
  auto* out = reinterpret_cast<T*>(target);
  for (size_t i = 0; i < bytes / sizeof(T); ++i) {
    auto at = [&](size_t rank) { return static_cast<Wide>(reinterpret_cast<const T*>(comm.Slot(rank))[i]); };
    Wide value = at(0);
    for (size_t rank = 1; rank < comm.ranks(); ++rank) {
      if (op == SUM) value += at(rank);
      if (op == PRODUCT) value *= at(rank);
      if (op == MAX) value = std::max(value, at(rank));
      if (op == MIN) value = std::min(value, at(rank));
    }
    out[i] = static_cast<T>(value);
  }
}

using Reduction = void (*)(const Communicator&, C_CCLReduceOp, char*, size_t);

struct Type {
  size_t size;
  Reduction reduce;
};

// The types that Ascend's plugin passes on to HCCL (PaddleCustomDevice, runtime.cc, and its pull requests 887 for
// bfloat16, 1206 for bool), and those of them that HcclAllReduce adds up on Atlas A2 (CANN 8.0). Size 0 for others.
Type TypeOf(C_DataType type) {
  switch (type) {
    case BOOL:
    case UINT8:
      return {1, nullptr};
    case INT8:
      return {1, ReduceSlots<int8_t>};
    case INT32:
      return {4, ReduceSlots<int32_t>};
    case INT64:
      return {8, ReduceSlots<int64_t>};
    case FLOAT16:
      return {2, ReduceSlots<phi::dtype::float16, float>};
    case BFLOAT16:
      return {2, ReduceSlots<phi::dtype::bfloat16, float>};
    case FLOAT32:
      return {4, ReduceSlots<float>};
    case FLOAT64:
      return {8, nullptr};
    default:
      return {0, nullptr};
  }
}

// HCCL has no average, and no product of bfloat16.
bool CanReduce(C_DataType type, C_CCLReduceOp op) {
  return TypeOf(type).reduce && op != AVG && !(op == PRODUCT && type == BFLOAT16);
}

struct Buffers {
  char* send;
  char* receive;
};

// Check a collective call and put `work(buffers)` into the stream's queue.
C_Status Collective(C_Stream stream, const void* send, size_t send_bytes, const void* receive, size_t receive_bytes,
                    std::function<bool(Buffers)> work) {
  auto& memory = memories[StreamOf(stream)->device()];
  Buffers buffers{memory.Contents(send, send_bytes), memory.Contents(receive, receive_bytes)};
  if (!buffers.send) return Refuse("sent, but not allocated on the device", send, send_bytes);
  if (!buffers.receive) return Refuse("received, but not allocated on the device", receive, receive_bytes);
  ++counters[kCollectives];
  StreamOf(stream)->Push([=] { return work(buffers); });
  return C_SUCCESS;
}

C_Status UniqueIdSize(size_t* size) {
  *size = kIdSize;
  return C_SUCCESS;
}

C_Status UniqueId(C_CCLRootId* id) {
  std::random_device random;
  std::snprintf(static_cast<char*>(id->data), id->sz, "/test_device_%d_%08x%08x", getpid(), random(), random());
  return C_SUCCESS;
}

C_Status InitRank(size_t ranks, C_CCLRootId* id, size_t rank, C_CCLComm* comm) {
  auto made = std::make_unique<Communicator>(static_cast<char*>(id->data), ranks, rank);
  if (!made->joined()) return C_INTERNAL_ERROR;
  *comm = reinterpret_cast<C_CCLComm>(made.release());
  return C_SUCCESS;
}

C_Status DestroyComm(C_CCLComm comm) {
  delete CommunicatorOf(comm);
  return C_SUCCESS;
}

C_Status CommName(C_CCLComm comm, char* name) {
  std::strcpy(name, CommunicatorOf(comm)->name().c_str());
  return C_SUCCESS;
}

C_Status Reduce(void* send, void* receive, size_t count, C_DataType type, C_CCLReduceOp op, size_t root,
                C_CCLComm comm, C_Stream stream) {
  if (!CanReduce(type, op)) return Refuse("HCCL has no such reduction", send, count);
  auto* all = CommunicatorOf(comm);
  const bool receives = root >= all->ranks() || root == all->rank();
  const size_t bytes = count * TypeOf(type).size;
  return Collective(stream, send, bytes, receives ? receive : send, bytes, [=](Buffers buffers) {
    return all->Exchange(buffers.send, bytes, [=](size_t offset, size_t part) {
      if (receives) TypeOf(type).reduce(*all, op, buffers.receive + offset, part);
    });
  });
}

C_Status AllReduce(void* send, void* receive, size_t count, C_DataType type, C_CCLReduceOp op, C_CCLComm comm,
                   C_Stream stream) {
  return Reduce(send, receive, count, type, op, CommunicatorOf(comm)->ranks(), comm, stream);
}

C_Status Broadcast(void* buffer, size_t count, C_DataType type, size_t root, C_CCLComm comm, C_Stream stream) {
  auto* all = CommunicatorOf(comm);
  const size_t bytes = count * TypeOf(type).size;
  if (!bytes) return Refuse("HCCL broadcasts no such type", buffer, count);
  return Collective(stream, buffer, bytes, buffer, bytes, [=](Buffers buffers) {
    return all->Exchange(buffers.send, bytes, [=](size_t offset, size_t part) {
      std::memcpy(buffers.receive + offset, all->Slot(root), part);
    });
  });
}

C_Status AllGather(void* send, void* receive, size_t count, C_DataType type, C_CCLComm comm, C_Stream stream) {
  auto* all = CommunicatorOf(comm);
  const size_t bytes = count * TypeOf(type).size;
  if (!bytes) return Refuse("HCCL gathers no such type", send, count);
  return Collective(stream, send, bytes, receive, bytes * all->ranks(), [=](Buffers buffers) {
    return all->Exchange(buffers.send, bytes, [=](size_t offset, size_t part) {
      for (size_t rank = 0; rank < all->ranks(); ++rank) {
        std::memcpy(buffers.receive + rank * bytes + offset, all->Slot(rank), part);
      }
    });
  });
}

C_Status ReduceScatter(void* send, void* receive, size_t count, C_DataType type, C_CCLReduceOp op, C_CCLComm comm,
                       C_Stream stream) {
  if (!CanReduce(type, op)) return Refuse("HCCL has no such reduction", send, count);
  auto* all = CommunicatorOf(comm);
  const size_t bytes = count * TypeOf(type).size, total = bytes * all->ranks();
  return Collective(stream, send, total, receive, bytes, [=](Buffers buffers) {
    std::vector<char> sums(total);
    if (!all->Exchange(buffers.send, total, [&](size_t offset, size_t part) {
          TypeOf(type).reduce(*all, op, sums.data() + offset, part);
        })) {
      return false;
    }
    std::memcpy(buffers.receive, sums.data() + all->rank() * bytes, bytes);
    return true;
  });
}

C_Status Supported(const C_Device, bool* supported) {
  *supported = true;
  return C_SUCCESS;
}

// The interface of Paddle 3.0 has no such members.
template <typename Interface>
auto AnswerWhatIsSupported(Interface& device, int) -> decltype(static_cast<void>(device.is_float16_supported)) {
  device.is_float16_supported = Supported;
  device.is_bfloat16_supported = Supported;
}

template <typename Interface>
void AnswerWhatIsSupported(Interface&, long) {}

}  // namespace

extern "C" {

// Of a kernel on the device: its memory, as the device itself sees it, or nullptr.
char* test_device_bytes(int device, const void* pointer, size_t size) {
  return Bytes(device, pointer, size);
}

// A copy between two devices, or the host (-1): 0 if it was done.
int test_device_copy(int to, void* target, int from, const void* source, size_t size) {
  return Copy(Now, to, target, from, source, size);
}

void test_device_counters(uint64_t* values) { std::copy(counters, counters + kCounters, values); }

void InitPlugin(CustomRuntimeParams* params) {
  PADDLE_CUSTOM_RUNTIME_CHECK_VERSION(params);
  static char type[] = DEVICE_TYPE, sub_type[] = "test";
  params->device_type = type;
  params->sub_device_type = sub_type;
  RegisterKernels();
  C_DeviceInterface& device = *params->interface;
  std::memset(&device, 0, sizeof(device));
  device.size = sizeof(device);

  device.initialize = Initialize;
  device.finalize = Finalize;
  device.init_device = SetDevice;
  device.set_device = SetDevice;
  device.get_device = GetDevice;
  device.deinit_device = [](const C_Device device) { return WaitForDevice(device->id); };
  device.get_device_count = [](size_t* count) { return *count = VisibleDevices(), C_SUCCESS; };
  device.get_device_list = [](size_t* list) { return std::iota(list, list + VisibleDevices(), 0), C_SUCCESS; };
  AnswerWhatIsSupported(device, 0);

  device.create_stream = CreateStream;
  device.destroy_stream = DestroyStream;
  device.query_stream = [](const C_Device, C_Stream stream) { return StreamOf(stream)->Idle() ? C_SUCCESS : C_FAILED; };
  device.stream_add_callback = AddCallback;
  device.synchronize_device = [](const C_Device device) { return WaitForDevice(device->id); };
  device.synchronize_stream = SynchronizeStream;
  device.stream_wait_event = StreamWaitEvent;
  device.create_event = CreateEvent;
  device.destroy_event = DestroyEvent;
  device.record_event = RecordEvent;
  device.query_event = [](const C_Device, C_Event event) { return EventOf(event)->Reached() ? C_SUCCESS : C_FAILED; };
  device.synchronize_event = SynchronizeEvent;

  device.device_memory_allocate = Allocate;
  device.device_memory_deallocate = Deallocate;
  device.host_memory_allocate = AllocateHost;
  device.host_memory_deallocate = DeallocateHost;
  device.device_memory_stats = [](const C_Device device, size_t* total, size_t* unused) {
    *total = memories[device->id].capacity();
    *unused = memories[device->id].unused();
    return C_SUCCESS;
  };
  device.device_min_chunk_size = [](const C_Device, size_t* size) { return *size = kAlignment, C_SUCCESS; };

  device.memory_copy_h2d = [](const C_Device to, void* target, const void* source, size_t size) {
    return Copy(Now, to->id, target, kHost, source, size);
  };
  device.memory_copy_d2h = [](const C_Device from, void* target, const void* source, size_t size) {
    return Copy(Now, kHost, target, from->id, source, size);
  };
  device.memory_copy_d2d = [](const C_Device on, void* target, const void* source, size_t size) {
    return Copy(Now, on->id, target, on->id, source, size);
  };
  device.memory_copy_p2p = [](const C_Device to, const C_Device from, void* target, const void* source, size_t size) {
    return Copy(Now, to->id, target, from->id, source, size);
  };
  device.async_memory_copy_h2d = [](const C_Device to, C_Stream stream, void* target, const void* source,
                                    size_t size) { return Copy(On(stream), to->id, target, kHost, source, size); };
  device.async_memory_copy_d2h = [](const C_Device from, C_Stream stream, void* target, const void* source,
                                    size_t size) { return Copy(On(stream), kHost, target, from->id, source, size); };
  device.async_memory_copy_d2d = [](const C_Device on, C_Stream stream, void* target, const void* source,
                                    size_t size) { return Copy(On(stream), on->id, target, on->id, source, size); };
  device.async_memory_copy_p2p = [](const C_Device to, const C_Device from, C_Stream stream, void* target,
                                    const void* source, size_t size) {
    return Copy(On(stream), to->id, target, from->id, source, size);
  };

  device.xccl_get_comm_name = CommName;
  device.xccl_get_unique_id_size = UniqueIdSize;
  device.xccl_get_unique_id = UniqueId;
  device.xccl_comm_init_rank = InitRank;
  device.xccl_destroy_comm = DestroyComm;
  device.xccl_all_reduce = AllReduce;
  device.xccl_broadcast = Broadcast;
  device.xccl_reduce = Reduce;
  device.xccl_all_gather = AllGather;
  device.xccl_reduce_scatter = ReduceScatter;
  device.xccl_group_start = [] { return C_SUCCESS; };
  device.xccl_group_end = [] { return C_SUCCESS; };
}
}

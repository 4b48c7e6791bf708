// A CUDA device made of this processor: what TVM's runtime needs of libcuda and libcudart, in one library.
//
// A "cubin" is a shared object whose kernels were compiled from the same CUDA source for this processor, each with an
// entry NAME__emulated(void** arguments). The threads of a block are coroutines of one thread of this process, which run
// to the next barrier in turn. A barrier that not all threads reach ends the process with a message: on a GPU it would
// hang, or compute something else. Nothing of C++'s library is used, so that it is compiled in a moment.
#include <cuda.h>
#include <dlfcn.h>
#include <elf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

// --- Blocks of threads ---------------------------------------------------------------------------

struct Dim { unsigned x, y, z; };
EXPORT Dim emulated_thread{}, emulated_block{}, emulated_block_dim{};

namespace {

enum State { kRunnable, kAtBlockBarrier, kAtWarpBarrier, kDone };

struct Thread {
  void* stack = nullptr;
  State state = kDone;
  Dim index{};
  uint64_t slot = 0;
};

constexpr size_t kStack = 128 << 10;
constexpr unsigned kThreads = 1024;
Thread threads[kThreads];
char* stacks[kThreads];
void* scheduler = nullptr;
unsigned current = 0;
void (*entry)(void**) = nullptr;
void** arguments = nullptr;

extern "C" void emulator_switch(void** from, void* to);
__asm__(
    ".text\n.type emulator_switch,@function\nemulator_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");

void yield(State state) {
  threads[current].state = state;
  emulator_switch(&threads[current].stack, scheduler);
}

extern "C" void emulator_main() {
  entry(arguments);
  yield(kDone);
  abort();
}

void start(unsigned number, Dim index) {
  uint64_t* top = reinterpret_cast<uint64_t*>(stacks[number] + kStack) - 1;
  *top = 0;  // a return address that nobody returns to, where a call would have left it
  *--top = reinterpret_cast<uint64_t>(&emulator_main);
  for (int saved = 0; saved < 6; ++saved) *--top = 0;
  threads[number].stack = top;
  threads[number].state = kRunnable;
  threads[number].index = index;
}

bool release(unsigned begin, unsigned end, State waiting) {
  bool any = false;
  for (unsigned i = begin; i < end; ++i) {
    if (threads[i].state == kDone) continue;
    if (threads[i].state != waiting) return false;
    any = true;
  }
  if (any)
    for (unsigned i = begin; i < end; ++i)
      if (threads[i].state == waiting) threads[i].state = kRunnable;
  return any;
}

void run_block(Dim block_dim) {
  unsigned count = block_dim.x * block_dim.y * block_dim.z, number = 0;
  for (unsigned z = 0; z < block_dim.z; ++z)
    for (unsigned y = 0; y < block_dim.y; ++y)
      for (unsigned x = 0; x < block_dim.x; ++x) start(number++, Dim{x, y, z});
  for (;;) {
    bool ran = false, done = true;
    for (current = 0; current < count; ++current) {
      if (threads[current].state == kRunnable) {
        emulated_thread = threads[current].index;
        emulator_switch(&scheduler, threads[current].stack);
        ran = true;
      }
      done &= threads[current].state == kDone;
    }
    if (done) return;
    bool released = false;
    for (unsigned warp = 0; warp < count; warp += 32)
      released |= release(warp, warp + 32 < count ? warp + 32 : count, kAtWarpBarrier);
    if (!released) released = release(0, count, kAtBlockBarrier);
    if (!released && !ran) {
      fprintf(stderr, "emulated GPU: threads of a block wait at a barrier that the others never reach\n");
      abort();
    }
  }
}

}  // namespace

EXPORT void emulated_syncthreads() { yield(kAtBlockBarrier); }

// What the thread in `lane` of this warp gave; its own value where there is none. 32 lanes, all take part.
EXPORT uint64_t emulated_shuffle(uint64_t value, unsigned lane) {
  unsigned self = current;
  threads[self].slot = value;
  yield(kAtWarpBarrier);
  unsigned other = (self & ~31u) + lane;
  uint64_t result = lane < 32 && other < kThreads && threads[other].state != kDone ? threads[other].slot : value;
  yield(kAtWarpBarrier);
  return result;
}
EXPORT unsigned emulated_lane() { return current & 31; }

// --- The driver ----------------------------------------------------------------------------------

// Which GPU this is: EMULATED_CAPABILITY is 87 for compute capability 8.7, EMULATED_CUDA 12060 for a driver of 12.6.
static int number(const char* variable, int otherwise) {
  const char* given = getenv(variable);
  return given ? atoi(given) : otherwise;
}

EXPORT CUresult cuGetErrorName(CUresult, const char** text) { *text = "CUDA_ERROR_EMULATED"; return CUDA_SUCCESS; }
EXPORT CUresult cuGetErrorString(CUresult, const char** text) { *text = "emulated"; return CUDA_SUCCESS; }
EXPORT CUresult cuDriverGetVersion(int* version) {
  *version = number("EMULATED_CUDA", 13000);
  return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGetName(char* name, int size, CUdevice) {
  snprintf(name, size, "emulated GPU");
  return CUDA_SUCCESS;
}
EXPORT CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
EXPORT CUresult cuTensorMapEncodeTiled(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                       const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                                       CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  return CUDA_ERROR_NOT_SUPPORTED;
}
EXPORT CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  const Elf64_Ehdr* header = static_cast<const Elf64_Ehdr*>(image);
  if (memcmp(header->e_ident, ELFMAG, SELFMAG) || header->e_machine != EM_X86_64) return CUDA_ERROR_INVALID_IMAGE;
  size_t size = header->e_shoff + size_t(header->e_shentsize) * header->e_shnum;
  int file = memfd_create("kernels", 0);
  if (file < 0 || write(file, image, size) != ssize_t(size)) return CUDA_ERROR_OUT_OF_MEMORY;
  char path[64];
  snprintf(path, sizeof path, "/proc/self/fd/%d", file);
  void* loaded = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!loaded) fprintf(stderr, "emulated GPU: %s\n", dlerror());
  close(file);
  *module = reinterpret_cast<CUmodule>(loaded);
  return loaded ? CUDA_SUCCESS : CUDA_ERROR_INVALID_IMAGE;
}
EXPORT CUresult cuModuleUnload(CUmodule module) {
  dlclose(module);
  return CUDA_SUCCESS;
}
EXPORT CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  char symbol[8192];
  snprintf(symbol, sizeof symbol, "%s__emulated", name);
  void* found = dlsym(module, symbol);
  *function = reinterpret_cast<CUfunction>(found);
  return found ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
EXPORT CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** given, void**) {
  Dim block{config->blockDimX, config->blockDimY, config->blockDimZ};
  unsigned count = block.x * block.y * block.z;
  if (!count || count > kThreads) return CUDA_ERROR_INVALID_VALUE;
  for (Thread& thread : threads) thread = Thread{};
  for (unsigned i = 0; i < count; ++i)
    if (!stacks[i]) stacks[i] = static_cast<char*>(aligned_alloc(64, kStack));
  entry = reinterpret_cast<void (*)(void**)>(function);
  arguments = given;
  emulated_block_dim = block;
  for (unsigned z = 0; z < config->gridDimZ; ++z)
    for (unsigned y = 0; y < config->gridDimY; ++y)
      for (unsigned x = 0; x < config->gridDimX; ++x) {
        emulated_block = Dim{x, y, z};
        run_block(block);
      }
  return CUDA_SUCCESS;
}

// --- The runtime ---------------------------------------------------------------------------------

// Declared here, since CUDA's own header needs more headers than its compiler does.
using cudaError_t = int;
using cudaEvent_t = timespec*;
using cudaStream_t = void*;
using cudaGraph_t = void*;
using cudaGraphExec_t = void*;
constexpr cudaError_t cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaErrorNotSupported = 801;

EXPORT cudaError_t cudaDeviceGetAttribute(int* value, int attribute, int) {
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = number("EMULATED_CAPABILITY", 90) / 10; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = number("EMULATED_CAPABILITY", 90) % 10; break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *value = 49152; break;
    default: *value = 1;
  }
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetDeviceProperties(void*, int) { return cudaErrorNotSupported; }
EXPORT cudaError_t cudaGetDeviceCount(int* count) { *count = 1; return cudaSuccess; }
EXPORT cudaError_t cudaGetDevice(int* device) { *device = 0; return cudaSuccess; }
EXPORT cudaError_t cudaSetDevice(int) { return cudaSuccess; }
EXPORT cudaError_t cudaMalloc(void** memory, size_t size) {
  // What was never written is no number, so that a kernel that reads it is found.
  *memory = aligned_alloc(256, (size + 255) / 256 * 256 + 256);
  if (!*memory) return cudaErrorMemoryAllocation;
  memset(*memory, 0xff, size);
  return cudaSuccess;
}
EXPORT cudaError_t cudaFree(void* memory) { free(memory); return cudaSuccess; }
EXPORT cudaError_t cudaMallocHost(void** memory, size_t size) { return cudaMalloc(memory, size); }
EXPORT cudaError_t cudaFreeHost(void* memory) { free(memory); return cudaSuccess; }
EXPORT cudaError_t cudaMemGetInfo(size_t* unused, size_t* total) { *unused = *total = size_t(1) << 33; return cudaSuccess; }
EXPORT cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, int, cudaStream_t) {
  memcpy(to, from, size);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t size, cudaStream_t) {
  memcpy(to, from, size);
  return cudaSuccess;
}
EXPORT const char* cudaGetErrorName(cudaError_t) { return "cudaErrorEmulated"; }
EXPORT const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
EXPORT cudaError_t cudaGetLastError() { return cudaSuccess; }
EXPORT cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
EXPORT cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = static_cast<timespec*>(malloc(sizeof(timespec)));
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t event) {
  free(event);
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  clock_gettime(CLOCK_MONOTONIC, event);
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
EXPORT cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  *milliseconds = (end->tv_sec - begin->tv_sec) * 1e3f + (end->tv_nsec - begin->tv_nsec) * 1e-6f;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamCreate(cudaStream_t* stream) { *stream = nullptr; return cudaSuccess; }
EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { *stream = nullptr; return cudaSuccess; }
EXPORT cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t, int) { return cudaErrorNotSupported; }
EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t*) { return cudaErrorNotSupported; }
EXPORT cudaError_t cudaGraphInstantiate(cudaGraphExec_t*, cudaGraph_t, unsigned long long) { return cudaErrorNotSupported; }
EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) { return cudaErrorNotSupported; }
EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t) { return cudaSuccess; }
EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaSuccess; }

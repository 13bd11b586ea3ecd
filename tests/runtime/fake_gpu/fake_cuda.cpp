// A stand-in for libcuda.so.1 in host memory, for tests of control flow. It proves nothing about CUDA.
//
// Work on a stream is put off until somebody waits for it, as late as CUDA may put it off, so that a buffer that is used
// again too early shows. Every handle and address is checked: what is not alive ends the process with a message.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "sampling.h"

namespace {

using Work = std::function<void()>;

struct Event {
    uint64_t records = 0;  // how often it was recorded
    uint64_t done = 0;     // the last record that was reached
    struct Stream *stream = nullptr;
};
struct Graph {
    std::vector<Work> works;
};
struct Stream {
    std::deque<Work> queue;
    bool running = false;
    std::unique_ptr<Graph> capturing;
    bool spoiled = false;
};

int contexts = 0;                    // retained
std::vector<void *> stack;           // of the one thread
std::map<uintptr_t, size_t> device;  // live allocations
std::map<uintptr_t, size_t> pinned;
std::set<void *> streams, events, graphs, executables, modules;
std::map<std::string, std::pair<int, int>> faults;  // function: calls until it fails, code
size_t memory_left = size_t(8) << 30;
int integrated = 0;
bool spinning = false;
long launches = 0, copies = 0, host_bytes = 0;
char context_handle;

[[noreturn]] void die(const char *what) {
    std::fprintf(stderr, "fake CUDA: %s\n", what);
    std::abort();
}

int fault(const char *function) {
    const auto found = faults.find(function);
    if (found == faults.end() || found->second.first-- > 0) {
        return 0;
    }
    const int code = found->second.second;
    if (code != 2) {  // no memory: none at the next try either (pycuda tries again)
        faults.erase(found);
    }
    return code;
}

bool holds(const std::map<uintptr_t, size_t> &memory, uintptr_t at, size_t bytes) {
    auto after = memory.upper_bound(at);
    if (after == memory.begin()) {
        return false;
    }
    --after;
    return at >= after->first && at + bytes <= after->first + after->second;
}

void need(uintptr_t at, size_t bytes, const char *what) {
    if (!holds(device, at, bytes) && !holds(pinned, at, bytes)) {
        die(what);
    }
}

Stream *known(void *stream) {
    if (!streams.count(stream)) {
        die("a stream that does not live");
    }
    return static_cast<Stream *>(stream);
}

void run(Stream *stream) {
    if (stream->running) {
        return;
    }
    stream->running = true;
    while (!stream->queue.empty()) {
        Work work = std::move(stream->queue.front());
        stream->queue.pop_front();
        work();
    }
    stream->running = false;
}

void enqueue(void *stream, Work work) {
    Stream *at = known(stream);
    if (at->capturing) {
        at->capturing->works.push_back(std::move(work));
    } else {
        at->queue.push_back(std::move(work));
    }
}

int unsafe() {  // what must not be called while this thread captures
    for (void *stream : streams) {
        if (static_cast<Stream *>(stream)->capturing) {
            static_cast<Stream *>(stream)->spoiled = true;
            return 900;
        }
    }
    return 0;
}

}  // namespace

#define API extern "C" __attribute__((visibility("default"))) int
#define FAULTY                              \
    if (const int code = fault(__func__)) { \
        return code;                        \
    }
#define CURRENT        \
    FAULTY             \
    if (stack.empty()) \
        return 201;

API cuInit(unsigned) { FAULTY return 0; }
API cuDriverGetVersion(int *version) { return *version = 13000, 0; }
API cuDeviceGetCount(int *count) {
    FAULTY
    const char *visible = std::getenv("CUDA_VISIBLE_DEVICES");
    return *count = visible && !*visible ? 0 : 1, 0;
}
API cuDeviceGet(int *handle, int) { return *handle = 0, 0; }
API cuDeviceGetName(char *name, int length, int) { return std::snprintf(name, length, "Fake GPU"), 0; }
API cuDeviceGetAttribute(int *value, int attribute, int) {
    return *value = attribute == 75 ? 9 : attribute == 18 ? integrated : attribute == 16 ? 132 : 0, 0;
}
API cuGetErrorName(int code, const char **name) {
    const bool known = code == 2 || code == 719 || code == 900;
    *name = code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : code == 719 ? "CUDA_ERROR_LAUNCH_FAILED"
                                                                 : "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED";
    return known ? 0 : 1;
}
API cuGetErrorString(int, const char **text) { return *text = "launch failed (asked for)", 0; }
API cuDevicePrimaryCtxRetain(void **context, int) {
    FAULTY
    ++contexts;
    return *context = &context_handle, 0;
}
API cuDevicePrimaryCtxRelease_v2(int) {
    if (--contexts < 0) {
        die("a context released too often");
    }
    return 0;
}
API cuDevicePrimaryCtxSetFlags_v2(int, unsigned flags) { return spinning = flags == 1, 0; }
API cuDevicePrimaryCtxRelease(int ordinal) { return cuDevicePrimaryCtxRelease_v2(ordinal); }
API cuCtxPushCurrent_v2(void *context) { return stack.push_back(context), 0; }
API cuCtxPopCurrent_v2(void **context) {
    if (stack.empty()) {
        return 201;
    }
    *context = stack.back();
    return stack.pop_back(), 0;
}
API cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    CURRENT
    return *free_bytes = memory_left, *total = size_t(8) << 30, 0;
}
API cuMemAlloc_v2(uintptr_t *at, size_t bytes) {
    CURRENT
    if (const int code = unsafe()) {
        return code;
    }
    if (bytes > memory_left || bytes == 0) {
        return bytes ? 2 : 1;
    }
    memory_left -= bytes;
    *at = reinterpret_cast<uintptr_t>(std::malloc(bytes));
    std::memset(reinterpret_cast<void *>(*at), 0xa5, bytes);
    return device[*at] = bytes, 0;
}
API cuMemFree_v2(uintptr_t at) {
    CURRENT
    if (!device.count(at)) {
        die("device memory freed twice");
    }
    memory_left += device[at];
    device.erase(at);
    return std::free(reinterpret_cast<void *>(at)), 0;
}
API cuMemHostAlloc(void **at, size_t bytes, unsigned) {
    CURRENT
    if (integrated) {  // one memory for both
        if (bytes > memory_left) {
            return 2;
        }
        memory_left -= bytes;
    }
    *at = std::malloc(bytes);
    std::memset(*at, 0xa5, bytes);
    return pinned[reinterpret_cast<uintptr_t>(*at)] = bytes, 0;
}
API cuMemFreeHost(void *at) {
    CURRENT
    const auto found = pinned.find(reinterpret_cast<uintptr_t>(at));
    if (found == pinned.end()) {
        die("pinned memory freed twice");
    }
    memory_left += integrated ? found->second : 0;
    pinned.erase(found);
    return std::free(at), 0;
}
API cuMemHostGetDevicePointer_v2(uintptr_t *at, void *host, unsigned) {
    return *at = reinterpret_cast<uintptr_t>(host), 0;
}
API cuStreamCreate(void **stream, unsigned flags) {
    CURRENT
    if (flags != 1) {
        die("a stream that waits for the default stream");
    }
    return *stream = new Stream, streams.insert(*stream), 0;
}
API cuStreamDestroy_v2(void *stream) {
    CURRENT
    run(known(stream));
    streams.erase(stream);
    return delete static_cast<Stream *>(stream), 0;
}
API cuStreamSynchronize(void *stream) {
    CURRENT
    if (const int code = unsafe()) {
        return code;
    }
    return run(known(stream)), 0;
}
API cuEventCreate(void **event, unsigned) {
    CURRENT
    return *event = new Event, events.insert(*event), 0;
}
API cuEventDestroy_v2(void *event) {
    CURRENT
    if (!events.erase(event)) {
        die("an event destroyed twice");
    }
    return 0;  // its memory stays: work that is put off may still refer to it
}
API cuEventRecord(void *handle, void *stream) {
    CURRENT
    Event *event = static_cast<Event *>(handle);
    const uint64_t number = ++event->records;
    event->stream = known(stream);
    enqueue(stream, [event, number] { event->done = number; });
    return 0;
}
API cuEventSynchronize(void *handle) {
    CURRENT
    if (const int code = unsafe()) {
        return code;
    }
    Event *event = static_cast<Event *>(handle);
    if (event->done < event->records) {
        run(event->stream);
    }
    return 0;
}
API cuEventElapsedTime(float *milliseconds, void *, void *) { return *milliseconds = 1.0f, 0; }
API cuEventElapsedTime_v2(float *milliseconds, void *, void *) { return *milliseconds = 1.0f, 0; }
API cuStreamWaitEvent(void *stream, void *handle, unsigned) {
    CURRENT
    Event *event = static_cast<Event *>(handle);
    const uint64_t number = event->records;
    enqueue(stream, [event, number] {
        if (event->done < number) {
            run(event->stream);
        }
    });
    return 0;
}
API cuMemcpyHtoDAsync_v2(uintptr_t to, const void *from, size_t bytes, void *stream) {
    CURRENT
    ++copies;
    host_bytes += bytes;
    need(to, bytes, "a copy to device memory that does not live");
    if (!holds(pinned, reinterpret_cast<uintptr_t>(from), bytes)) {  // staged before the call returns
        std::vector<char> staged(static_cast<const char *>(from), static_cast<const char *>(from) + bytes);
        enqueue(stream, [=] { std::memcpy(reinterpret_cast<void *>(to), staged.data(), bytes); });
        return 0;
    }
    enqueue(stream, [=] {
        need(to, bytes, "a late copy to device memory that is gone");
        need(reinterpret_cast<uintptr_t>(from), bytes, "a late copy from pinned memory that is gone");
        std::memcpy(reinterpret_cast<void *>(to), from, bytes);
    });
    return 0;
}
API cuMemcpyDtoHAsync_v2(void *to, uintptr_t from, size_t bytes, void *stream) {
    CURRENT
    ++copies;
    if (!holds(pinned, reinterpret_cast<uintptr_t>(to), bytes)) {  // there before the call returns
        run(known(stream));
        need(from, bytes, "a copy from device memory that is gone");
        return std::memcpy(to, reinterpret_cast<void *>(from), bytes), 0;
    }
    enqueue(stream, [=] {
        need(from, bytes, "a late copy from device memory that is gone");
        need(reinterpret_cast<uintptr_t>(to), bytes, "a late copy to pinned memory that is gone");
        std::memcpy(to, reinterpret_cast<void *>(from), bytes);
    });
    return 0;
}
API cuMemsetD32Async(uintptr_t at, unsigned value, size_t count, void *stream) {
    CURRENT
    enqueue(stream, [=] {
        need(at, 4 * count, "device memory that is gone is set");
        std::fill_n(reinterpret_cast<unsigned *>(at), count, value);
    });
    return 0;
}
API cuMemsetD8Async(uintptr_t at, unsigned char value, size_t count, void *stream) {
    CURRENT
    enqueue(stream, [=] {
        need(at, count, "device memory that is gone is set");
        std::memset(reinterpret_cast<void *>(at), value, count);
    });
    return 0;
}
API cuModuleLoadDataEx(void **module, const void *image, unsigned, int *, void **) {
    CURRENT
    if (*static_cast<const uint32_t *>(image) != 0xba55ed50) {
        return 200;
    }
    return *module = new char, modules.insert(*module), 0;
}
API cuModuleUnload(void *module) {
    CURRENT
    if (!modules.erase(module)) {
        die("a module unloaded twice");
    }
    return 0;
}
API cuModuleGetFunction(void **function, void *, const char *name) {
    const std::string text = name;
    if (text != "sample_uint8" && text != "sample_uint16") {
        return 500;
    }
    return *function = reinterpret_cast<void *>(text == "sample_uint8" ? 1 : 2), 0;
}
API cuFuncSetBlockShape(void *, int, int, int) { return 0; }

// As the compiler lays out the kernels' arguments.
struct Arguments {
    uintptr_t pixels, valid;
    int bands, height, width;
    const double *boxes;
    int side;
    float low, factor;
    uint8_t *levels;
    unsigned *valid_pixels;
};

template <class Value>
static void sample(const Arguments &a, unsigned windows) {
    using namespace edge_infer;
    const int64_t pixels = int64_t(a.height) * a.width, chip = int64_t(a.side) * a.side * a.bands;
    need(a.pixels, a.bands * pixels * sizeof(Value), "the sampler reads a tile that is not there");
    if (a.valid) {
        need(a.valid, pixels, "the sampler reads a mask that is not there");
    }
    need(reinterpret_cast<uintptr_t>(a.boxes), 32 * windows, "the sampler reads windows that are not there");
    need(reinterpret_cast<uintptr_t>(a.levels), chip * windows, "the sampler writes chips beyond memory");
    need(reinterpret_cast<uintptr_t>(a.valid_pixels), 4 * windows, "the sampler writes counts beyond memory");
    const Tile<Value> tile{reinterpret_cast<const Value *>(a.pixels), reinterpret_cast<const uint8_t *>(a.valid),
                           a.bands, a.height, a.width};
    for (unsigned window = 0; window < windows; ++window) {
        const double *box = a.boxes + 4 * window;
        const Axis x = make_axis(box[0], box[2], a.side, a.width), y = make_axis(box[1], box[3], a.side, a.height);
        uint8_t *level = a.levels + window * chip;
        for (int row = 0; row < a.side; ++row) {
            for (int column = 0; column < a.side; ++column, level += a.bands) {
                a.valid_pixels[window] +=
                    sample_pixel(tile, {a.low, a.factor}, x, y, taps_of(x, column), taps_of(y, row), level);
            }
        }
    }
}

API cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned windows, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned, void *stream, void **, void **extra) {
    CURRENT
    ++launches;
    Arguments arguments;
    if (*static_cast<size_t *>(extra[3]) != sizeof arguments) {
        die("the kernel's arguments have the wrong size");
    }
    std::memcpy(&arguments, extra[1], sizeof arguments);
    const unsigned side = arguments.side;
    if (block_x != 32 || block_y != 8 || block_z != 1 || grid_x != (side + 31) / 32 || grid_y != (side + 7) / 8) {
        die("the kernel is launched over the wrong threads");
    }
    const bool wide = function == reinterpret_cast<void *>(2);
    enqueue(stream, [=] { wide ? sample<uint16_t>(arguments, windows) : sample<uint8_t>(arguments, windows); });
    return 0;
}
API cuStreamBeginCapture_v2(void *stream, int mode) {
    CURRENT
    if (mode != 1) {
        die("a capture that other threads can spoil");
    }
    known(stream)->capturing = std::make_unique<Graph>();
    known(stream)->spoiled = false;
    return 0;
}
API cuStreamEndCapture(void *stream, void **graph) {
    *graph = nullptr;
    std::unique_ptr<Graph> captured = std::move(known(stream)->capturing);
    if (const int code = fault("cuStreamEndCapture")) {
        return code;
    }
    if (known(stream)->spoiled) {
        return 901;
    }
    *graph = captured.release();
    return graphs.insert(*graph), 0;
}
API cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
    CURRENT
    if (!graphs.count(graph) || flags) {
        die("a graph that does not live");
    }
    *executable = new Graph(*static_cast<Graph *>(graph));
    return executables.insert(*executable), 0;
}
API cuGraphDestroy(void *graph) {
    if (!graphs.erase(graph)) {
        die("a graph destroyed twice");
    }
    return delete static_cast<Graph *>(graph), 0;
}
API cuGraphExecDestroy(void *executable) {
    if (!executables.erase(executable)) {
        die("an executable graph destroyed twice");
    }
    return 0;
}
API cuGraphLaunch(void *executable, void *stream) {
    CURRENT
    ++launches;
    if (!executables.count(executable)) {
        die("a graph is launched that does not live");
    }
    for (const Work &work : static_cast<Graph *>(executable)->works) {
        enqueue(stream, work);
    }
    return 0;
}

// --- for the tests ---

API fake_call(void *stream, void (*function)(void *), void *argument) {
    if (stack.empty()) {
        return 201;
    }
    return enqueue(stream, [=] { function(argument); }), 0;
}
API fake_fail(const char *function, int calls_before, int code) {
    return faults[function] = {calls_before, code}, 0;
}
API fake_set(int is_integrated, size_t bytes) {
    faults.clear();
    return integrated = is_integrated, memory_left = bytes, 0;
}
API fake_lives(const void *at, size_t bytes) {
    const auto address = reinterpret_cast<uintptr_t>(at);
    return holds(device, address, bytes) || holds(pinned, address, bytes);
}
extern "C" __attribute__((visibility("default"))) long fake_count(const char *what) {
    const std::string text = what;
    const std::map<std::string, long> counts = {
        {"contexts", contexts}, {"stack", stack.size()}, {"device", device.size()}, {"pinned", pinned.size()},
        {"streams", streams.size()}, {"events", events.size()}, {"graphs", graphs.size()},
        {"executables", executables.size()}, {"modules", modules.size()}, {"launches", launches}, {"copies", copies},
        {"host_bytes", host_bytes}, {"spinning", spinning}};
    return counts.at(text);
}

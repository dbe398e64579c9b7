/* NVML: what nvidia-smi, torch's out-of-memory text and torch.cuda.device_memory_used() read.
 * It knows this process only: other processes, temperature, power and load are constants.
 * Boards are counted as the machine does, whatever CUDA_VISIBLE_DEVICES says; a handle is the board's number plus one.
 * Types are written out here because NVML's header is in no wheel that torch depends on. */
#define _GNU_SOURCE
#include "vgpu.h"

#include <unistd.h>

#define NVML API int
enum { OK = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };

typedef void *board_handle;
static int board_of(board_handle handle) { return (int)(uintptr_t)handle - 1; }
static int put_text(char *out, unsigned length, const char *text) {
  return (unsigned)snprintf(out, length, "%s", text) < length ? OK : INSUFFICIENT_SIZE;
}

/* ---- the library and the system */

NVML nvmlInit(void) { return OK; }
NVML nvmlInit_v2(void) { return OK; }
NVML nvmlInitWithFlags(unsigned flags UNUSED) { return OK; }
NVML nvmlShutdown(void) { return OK; }
NVML nvmlSystemGetCudaDriverVersion(int *version) { return *version = CUDA_VERSION, OK; }
NVML nvmlSystemGetCudaDriverVersion_v2(int *version) { return *version = CUDA_VERSION, OK; }
NVML nvmlSystemGetDriverVersion(char *version, unsigned length) {
  return put_text(version, length, "0.0 (vramkit virtual GPU)");
}
NVML nvmlSystemGetNVMLVersion(char *version, unsigned length) {
  return put_text(version, length, "0.0 (vramkit virtual GPU)");
}
API const char *nvmlErrorString(int error) {
  return error == OK              ? "Success"
         : error == NOT_SUPPORTED ? "Not Supported"
         : error == NOT_FOUND     ? "Not Found"
                                  : "Unknown Error";
}

/* ---- which board */

NVML nvmlDeviceGetCount(unsigned *count) { return configure(), *count = (unsigned)settings.installed, OK; }
NVML nvmlDeviceGetCount_v2(unsigned *count) { return nvmlDeviceGetCount(count); }
NVML nvmlDeviceGetHandleByIndex_v2(unsigned index, board_handle *handle) {
  configure();
  *handle = (board_handle)(uintptr_t)(index + 1);
  return index < (unsigned)settings.installed ? OK : INVALID_ARGUMENT;
}
NVML nvmlDeviceGetHandleByIndex(unsigned index, board_handle *handle) {
  return nvmlDeviceGetHandleByIndex_v2(index, handle);
}
NVML nvmlDeviceGetHandleByPciBusId_v2(const char *id, board_handle *handle) {
  unsigned domain, bus;
  configure();
  if (sscanf(id, "%x:%x", &domain, &bus) != 2 || bus < 1 || bus > (unsigned)settings.installed) return NOT_FOUND;
  *handle = (board_handle)(uintptr_t)bus;
  return OK;
}
static void uuid_text(int board, char *out, size_t length) { /* the same sixteen bytes as cudaDeviceProp's */
  unsigned b = (0x10u + (unsigned)board) & 255;
  snprintf(out, length, "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b, b, b, b, b, b, b,
           b, b, b, b, b, b, b, b, b);
}
NVML nvmlDeviceGetUUID(board_handle handle, char *uuid, unsigned length) {
  return uuid_text(board_of(handle), uuid, length), OK;
}
NVML nvmlDeviceGetHandleByUUID(const char *uuid, board_handle *handle) {
  char text[64];
  configure();
  for (int board = 0; board < settings.installed; board++) {
    uuid_text(board, text, sizeof text);
    if (!strcmp(text, uuid)) return *handle = (board_handle)(uintptr_t)(board + 1), OK;
  }
  return NOT_FOUND;
}
NVML nvmlDeviceGetIndex(board_handle handle, unsigned *index) { return *index = (unsigned)board_of(handle), OK; }
NVML nvmlDeviceGetMinorNumber(board_handle handle, unsigned *minor) { return *minor = (unsigned)board_of(handle), OK; }
NVML nvmlDeviceGetName(board_handle handle UNUSED, char *name, unsigned length) {
  return configure(), put_text(name, length, settings.name);
}
NVML nvmlDeviceGetCudaComputeCapability(board_handle handle UNUSED, int *major, int *minor) {
  configure();
  *major = settings.major, *minor = settings.minor;
  return OK;
}
struct pci_info {
  char legacy[16];
  unsigned domain, bus, device, ids, subsystem;
  char id[32];
}; /* nvmlPciInfo_t */
NVML nvmlDeviceGetPciInfo_v3(board_handle handle, struct pci_info *pci) {
  memset(pci, 0, sizeof *pci);
  pci->bus = (unsigned)board_of(handle) + 1;
  snprintf(pci->legacy, sizeof pci->legacy, "0000:%02X:00.0", pci->bus & 255);
  snprintf(pci->id, sizeof pci->id, "00000000:%02X:00.0", pci->bus & 255);
  return OK;
}

/* ---- memory
 * The board has a little more than CUDA can hand out; that part is reserved by the driver. The first version of the
 * call counts it as used, the second lists it apart. */

struct memory_v1 {
  unsigned long long total, available, used;
}; /* nvmlMemory_t */
struct memory_v2 {
  unsigned version;
  unsigned long long total, reserved, available, used;
}; /* nvmlMemory_v2_t */

NVML nvmlDeviceGetMemoryInfo_v2(board_handle handle, struct memory_v2 *memory) {
  size_t total;
  configure();
  memory->used = board_taken(board_of(handle), &total);
  memory->total = total;
  memory->reserved = settings.board_memory - settings.memory;
  memory->available = total - memory->reserved > memory->used ? total - memory->reserved - memory->used : 0;
  return OK;
}
NVML nvmlDeviceGetMemoryInfo(board_handle handle, struct memory_v1 *memory) {
  struct memory_v2 whole;
  nvmlDeviceGetMemoryInfo_v2(handle, &whole);
  *memory = (struct memory_v1){whole.total, whole.available, whole.total - whole.available};
  return OK;
}

/* ---- processes: this one, once it has a context */

struct process_v1 {
  unsigned pid;
  unsigned long long memory;
}; /* nvmlProcessInfo_v1_t */
struct process_v2 {
  unsigned pid;
  unsigned long long memory;
  unsigned instance, compute_instance;
}; /* nvmlProcessInfo_t */

static int processes(board_handle handle, unsigned *count, void *list, size_t row) {
  size_t total, used;
  configure();
  used = board_taken(board_of(handle), &total);
  unsigned room = *count;
  *count = used > 0;
  if (!used) return OK;
  if (room < 1) return INSUFFICIENT_SIZE;
  memset(list, 0, row);
  *(struct process_v1 *)list = (struct process_v1){(unsigned)getpid(), used};
  return OK;
}
NVML nvmlDeviceGetComputeRunningProcesses(board_handle handle, unsigned *count, struct process_v1 *list) {
  return processes(handle, count, list, sizeof *list);
}
NVML nvmlDeviceGetComputeRunningProcesses_v2(board_handle handle, unsigned *count, struct process_v2 *list) {
  return processes(handle, count, list, sizeof *list);
}
NVML nvmlDeviceGetComputeRunningProcesses_v3(board_handle handle, unsigned *count, struct process_v2 *list) {
  return processes(handle, count, list, sizeof *list);
}
NVML nvmlDeviceGetGraphicsRunningProcesses(board_handle handle UNUSED, unsigned *count, void *list UNUSED) {
  return *count = 0, OK;
}
NVML nvmlDeviceGetGraphicsRunningProcesses_v2(board_handle handle UNUSED, unsigned *count, void *list UNUSED) {
  return *count = 0, OK;
}
NVML nvmlDeviceGetGraphicsRunningProcesses_v3(board_handle handle UNUSED, unsigned *count, void *list UNUSED) {
  return *count = 0, OK;
}

/* ---- what a card that does nothing would say */

struct utilization {
  unsigned gpu, memory;
};
NVML nvmlDeviceGetUtilizationRates(board_handle handle UNUSED, struct utilization *rates) {
  return *rates = (struct utilization){0, 0}, OK;
}
NVML nvmlDeviceGetTemperature(board_handle handle UNUSED, int sensor UNUSED, unsigned *celsius) {
  return *celsius = 25, OK;
}
NVML nvmlDeviceGetPowerUsage(board_handle handle UNUSED, unsigned *milliwatts) { return *milliwatts = 0, OK; }
NVML nvmlDeviceGetClockInfo(board_handle handle UNUSED, int which UNUSED, unsigned *mhz) {
  return configure(), *mhz = (unsigned)settings.clock_mhz, OK;
}
NVML nvmlDeviceGetMaxClockInfo(board_handle handle UNUSED, int which UNUSED, unsigned *mhz) {
  return configure(), *mhz = (unsigned)settings.clock_mhz, OK;
}

/* torch 2.13's expandable segments want an answer about NVLink between machines: the card is in no such fabric. */
struct fabric_info {
  unsigned version;
  unsigned char cluster[16];
  int status;
  unsigned clique;
  unsigned char state; /* 0: not supported; what newer versions have beyond is left as it was given */
}; /* nvmlGpuFabricInfoV_t */
NVML nvmlDeviceGetGpuFabricInfoV(board_handle handle UNUSED, struct fabric_info *info) {
  memset(info->cluster, 0, sizeof info->cluster);
  info->status = OK, info->clique = 0, info->state = 0;
  return OK;
}

/* Torch insists on finding these. */
NVML nvmlDeviceGetNvLinkRemoteDeviceType(void) { return NOT_SUPPORTED; }
NVML nvmlDeviceGetNvLinkRemotePciInfo_v2(void) { return NOT_SUPPORTED; }

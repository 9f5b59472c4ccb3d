/* A libnvidia-ml.so.1 with two made-up GPUs, for the real pynvml to load.
 *
 * GPU-0000…0001 answers everything. GPU-0000…0002 refuses energy, clocks and processes, and has an old driver's
 * name for the clock reasons only where FAKE_NVML_OLD is set. Counters advance with every question, so that
 * differences have a known value: energy by 5 J, each reading of power alternates between 100 W and 300 W.
 * Signatures: NVIDIA's nvml.h.
 */
#include <stdlib.h>
#include <string.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, TOO_SMALL = 7, DRIVER = 9 };

typedef struct { const char *uuid; const char *bus; unsigned long long energy_mj; int asked_power; } gpu_t;
typedef gpu_t *nvmlDevice_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int gpu, memory; } utilization_t;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gi, ci; } process_t;

static gpu_t gpus[] = {
    {"GPU-00000000-0000-0000-0000-000000000001", "00000000:0a:00.0", 1000, 0},
    {"GPU-00000000-0000-0000-0000-000000000002", "00000000:0b:00.0", 1000, 0},
};
static int users;

static int refuses(nvmlDevice_t d) { return d == &gpus[1]; }

int nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    if (getenv("FAKE_NVML_NO_DRIVER")) return DRIVER;
    users++;
    return OK;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return users-- > 0 ? OK : UNINITIALIZED; }
const char *nvmlErrorString(int code) { return code == NOT_SUPPORTED ? "Not Supported" : "made-up error"; }

int nvmlSystemGetDriverVersion(char *text, unsigned int size) {
    strncpy(text, "580.65.06", size);
    return OK;
}
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 13000; return OK; }

int nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    for (int i = 0; i < 2; i++)
        if (!strcmp(uuid, gpus[i].uuid)) { *device = &gpus[i]; return OK; }
    return NOT_FOUND;
}
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, nvmlDevice_t *device) {
    for (int i = 0; i < 2; i++)
        if (!strcmp(bus, gpus[i].bus)) { *device = &gpus[i]; return OK; }
    return NOT_FOUND;
}

int nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t d, unsigned long long *mj) {
    if (refuses(d)) return NOT_SUPPORTED;
    *mj = d->energy_mj;
    d->energy_mj += 5000;
    return OK;
}
int nvmlDeviceGetPowerUsage(nvmlDevice_t d, unsigned int *mw) {
    *mw = d->asked_power++ % 2 ? 300000 : 100000;
    return OK;
}
int nvmlDeviceGetPowerManagementLimit(nvmlDevice_t d, unsigned int *mw) { (void)d; *mw = 700000; return OK; }
int nvmlDeviceGetClockInfo(nvmlDevice_t d, int kind, unsigned int *mhz) {
    if (refuses(d)) return NO_PERMISSION;
    *mhz = kind == 1 ? 1980 : 2619;
    return OK;
}
int nvmlDeviceGetTemperature(nvmlDevice_t d, int sensor, unsigned int *celsius) {
    (void)d; (void)sensor;
    *celsius = 41;
    return OK;
}
int nvmlDeviceGetMemoryInfo(nvmlDevice_t d, memory_t *m) {
    (void)d;
    m->total = 1ULL << 37; m->used = 3ULL << 30; m->free = m->total - m->used;
    return OK;
}
int nvmlDeviceGetUtilizationRates(nvmlDevice_t d, utilization_t *u) { (void)d; u->gpu = 75; u->memory = 20; return OK; }
int nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t d, unsigned long long *bits) {
    if (refuses(d)) return NOT_SUPPORTED;
    *bits = 0x04 | 0x20;
    return OK;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t d, unsigned long long *bits) {
    if (!getenv("FAKE_NVML_OLD")) return NOT_SUPPORTED;
    (void)d;
    *bits = 0x08;
    return OK;
}
int nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t d, unsigned int *count, process_t *found) {
    const char *own = getenv("FAKE_NVML_PID");
    if (refuses(d)) return NO_PERMISSION;
    if (*count < 3) { *count = 3; return TOO_SMALL; }
    *count = 3;
    for (unsigned int i = 0; i < 3; i++) { found[i].pid = 900001 + i; found[i].used = 1 << 20; found[i].gi = found[i].ci = 0; }
    if (own) found[0].pid = (unsigned int)atoi(own);
    return OK;
}

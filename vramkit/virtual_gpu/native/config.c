/* The settings of the virtual GPU: a text of key=value pairs that Python writes (the catalogue exists only there).
 * It knows how to read that text, CUDA_VISIBLE_DEVICES and the trace switch; it has no default card. */
#include "vgpu.h"

#include <stdarg.h>
#include <stdatomic.h>

struct settings settings;
static char *given; /* the text that vgpu_configure was handed */
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* The value of a key in "key=value;key=value", or NULL; valid until the next call. */
static const char *value_of(const char *text, const char *key) {
  static char value[256];
  size_t length = strlen(key);
  for (const char *at = text; at && *at; at = strchr(at, ';') ? strchr(at, ';') + 1 : NULL)
    if (!strncmp(at, key, length) && at[length] == '=') {
      snprintf(value, sizeof value, "%.*s", (int)strcspn(at + length + 1, ";"), at + length + 1);
      return value;
    }
  return NULL;
}

static size_t number(const char *text, const char *key) {
  const char *value = value_of(text, key);
  if (!value) {
    fprintf(stderr, "virtual GPU: the settings lack '%s': \"%s\"\n", key, text);
    abort();
  }
  return strtoull(value, NULL, 10);
}

/* As the driver reads it: a list of numbers, cut at the first that is not an installed device. */
static void choose_visible(void) {
  const char *text = getenv("CUDA_VISIBLE_DEVICES");
  if (!text) {
    settings.devices = settings.installed;
    for (int i = 0; i < settings.installed; i++) settings.board[i] = i;
    return;
  }
  for (char *end; *text; text = end + (*end == ',')) {
    long board = strtol(text, &end, 10);
    if (end == text || board < 0 || board >= settings.installed || settings.devices == MAX_DEVICES) break;
    settings.board[settings.devices++] = (int)board;
  }
}

static void load(void) {
  const char *text = given ? given : getenv("VRAMKIT_VIRTUAL_GPU");
  const char *tracing = getenv("VRAMKIT_VIRTUAL_GPU_TRACE");
  settings.trace = tracing && *tracing && *tracing != '0';
  if (!text) return; /* loaded but not configured: a machine without devices */
  snprintf(settings.name, sizeof settings.name, "%s", value_of(text, "product") ? value_of(text, "product") : "");
  settings.memory = number(text, "memory");
  settings.board_memory = number(text, "board_memory");
  settings.context = number(text, "context");
  settings.copy_limit = number(text, "copy_limit");
  const char *values = value_of(text, "values");
  if (values && !strcmp(values, "all")) settings.copy_limit = SIZE_MAX;
  settings.l2_cache = number(text, "l2_cache");
  settings.shared_memory_per_multiprocessor = number(text, "shared_memory_per_multiprocessor");
  settings.shared_memory_per_block = number(text, "shared_memory_per_block");
  settings.major = (int)number(text, "major");
  settings.minor = (int)number(text, "minor");
  settings.multiprocessors = (int)number(text, "multiprocessors");
  settings.threads_per_multiprocessor = (int)number(text, "threads_per_multiprocessor");
  settings.blocks_per_multiprocessor = (int)number(text, "blocks_per_multiprocessor");
  settings.clock_mhz = (int)number(text, "clock_mhz");
  settings.memory_clock_mhz = (int)number(text, "memory_clock_mhz");
  settings.bus_width = (int)number(text, "bus_width");
  settings.installed = (int)number(text, "count");
  if (settings.installed > MAX_DEVICES) settings.installed = MAX_DEVICES;
  settings.rising = number(text, "rising") != 0;
  /* A device runs the newest code of its own generation that is not newer than itself: 8.9 runs code for 8.6. */
  static const int compiled[] = {50, 60, 70, 75, 80, 86, 90, 100, 120};
  for (size_t i = 0; i < sizeof compiled / sizeof *compiled; i++)
    if (compiled[i] <= 10 * settings.major + settings.minor) settings.binary = compiled[i];
  choose_visible();
}

void configure(void) { pthread_once(&once, load); }

/* Called once, before torch is imported; without it the environment variable counts (child processes). */
API void vgpu_configure(const char *text) { given = strdup(text); }

void trace(const char *format, ...) {
  configure();
  if (!settings.trace) return;
  va_list args;
  va_start(args, format);
  fputs("virtual GPU: ", stderr);
  vfprintf(stderr, format, args);
  fputc('\n', stderr);
  va_end(args);
}

/* ---- limits: functions that would have had to answer and could not, for the text of an exception */

static _Atomic(const char *) limits[64];
static _Atomic unsigned limits_met;

void limit_met(const char *function) {
  trace("not supported: %s", function);
  limits[atomic_fetch_add(&limits_met, 1) % 64] = function;
}

/* How many were met so far, and the function of one of them; NULL: there is none, or it is forgotten. */
API unsigned vgpu_limits_met(void) { return atomic_load(&limits_met); }
API const char *vgpu_limit(unsigned number) {
  unsigned met = atomic_load(&limits_met);
  return number < met && met - number <= 64 ? limits[number % 64] : NULL;
}

/* The generated stubs say here that they were called: without an answer to give, or with success. */
API int vgpu_refuse_call(const char *function, int status) { return limit_met(function), status; }
API int vgpu_accept_call(const char *function) { return trace("stub %s", function), 0; }

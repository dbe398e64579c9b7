/* What a measured script is told of its processes: that this one uses a device, and what it runs.
 * It knows the folder by which `vramkit run` listens, and nothing of what is measured there. A process that Python's own
 * hook did not reach (another interpreter, python -I) can't be measured, and is missed by this. */
#define _GNU_SOURCE
#include "vgpu.h"

#include <fcntl.h>
#include <unistd.h>

void tell_of_use(void) {
  static pid_t told; /* a fork tells of itself */
  const char *folder = getenv("VRAMKIT_RUN");
  char path[4096], command[4096];
  if (!folder || __atomic_exchange_n(&told, getpid(), __ATOMIC_RELAXED) == getpid()) return;
  if (snprintf(path, sizeof path, "%s/%d.used", folder, (int)getpid()) >= (int)sizeof path) return;
  int source = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
  int sink = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (source >= 0 && sink >= 0) {
    ssize_t size = read(source, command, sizeof command);
    if (size > 0 && write(sink, command, (size_t)size) != size) unlink(path);
  }
  if (source >= 0) close(source);
  if (sink >= 0) close(sink);
}

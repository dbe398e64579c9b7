/* torch's autograd threads, given the time that a real device's work gives them.
 * A thread that has run a backward lets go of the graph's last tensors after it has handed the results over, and wants
 * Python's lock for that. On a card it is through long before the kernels are, and so before whoever waits for them goes
 * on; here nothing takes time, and a cache that is emptied next (as before each capture of a CUDA graph) would sometimes
 * find those tensors still there, and keep their segments. */
#define _GNU_SOURCE
#include "vgpu.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { LOOKS = 20000 }; /* 2 s of sleep: then a thread does something else */

/* Whether a thread other than this one is an autograd thread that runs, or is about to. Python's lock has been let go
 * by now, so that whoever waited for it is runnable. */
static bool runs(long task) {
  char path[64], text[64];
  snprintf(path, sizeof path, "/proc/self/task/%ld/stat", task);
  FILE *file = fopen(path, "r");
  if (!file) return false; /* it has ended */
  bool read = fgets(text, sizeof text, file) != NULL;
  fclose(file);
  const char *name = read ? strchr(text, '(') : NULL, *end = name ? strrchr(name, ')') : NULL;
  return end && !strncmp(name, "(pt_autograd", 12) && end[1] == ' ' && end[2] != 'S';
}

static bool any_runs(void) {
  DIR *folder = opendir("/proc/self/task");
  if (!folder) return false;
  long self = syscall(SYS_gettid);
  bool found = false;
  for (struct dirent *entry; !found && (entry = readdir(folder));) {
    long task = strtol(entry->d_name, NULL, 10);
    found = task > 0 && task != self && runs(task);
  }
  closedir(folder);
  return found;
}

void autograd_rest(void) {
  const struct timespec pause = {.tv_nsec = 100000};
  for (int look = 0; look < LOOKS && any_runs(); look++) nanosleep(&pause, NULL);
}

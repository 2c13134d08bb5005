// SPDX-License-Identifier: MIT
// How many CPUs this process may really use (be_cpu_available in thread_pool.h): the affinity
// mask, then the bandwidth quotas of its cgroup and of every cgroup above it, since the tightest
// one binds. A quota of 1.5 CPUs counts as 2: the kernel throttles threads, not the process's
// wish, and rounding down would leave a third of the quota unused.
//
// All of this is advice from files that may be hidden, unmounted or of a future shape. Whatever
// cannot be read or understood limits nothing.
#define _GNU_SOURCE
#include "thread_pool.h"

#if defined(_WIN32)
#include <windows.h>
#else
#include <unistd.h>
#endif

#if defined(__linux__)
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Prepended to /proc and /sys paths; the tests put a made-up machine here.
#ifndef BE_SYSTEM_ROOT
#define BE_SYSTEM_ROOT ""
#endif

enum { PATH_CAPACITY = 1024, LINE_CAPACITY = 4096 };

// One line without its newline, cut at the buffer's size (the rest of the line is dropped).
static bool read_line(FILE *file, char line[LINE_CAPACITY]) {
  if (!fgets(line, LINE_CAPACITY, file))
    return false;
  size_t length = strcspn(line, "\n");
  if (line[length] == '\0') {
    int c;
    do
      c = fgetc(file);
    while (c != '\n' && c != EOF);
  }
  line[length] = '\0';
  return true;
}

// Is `word` an element of the comma-separated `list`?
static bool has_word(const char *list, const char *word) {
  size_t length = strlen(word);
  for (;;) {
    size_t n = strcspn(list, ",");
    if (n == length && memcmp(list, word, n) == 0)
      return true;
    if (list[n] == '\0')
      return false;
    list += n + 1;
  }
}

// First line of `directory`/`name`.
static bool read_setting(const char *directory, const char *name, char line[LINE_CAPACITY]) {
  char path[PATH_CAPACITY];
  int length = snprintf(path, sizeof path, "%s/%s", directory, name);
  if (length < 0 || (size_t)length >= sizeof path)
    return false;
  FILE *file = fopen(path, "re");
  if (!file)
    return false;
  bool ok = read_line(file, line);
  fclose(file);
  return ok;
}

// ceil(quota / period), or `limit` where that is less or there is no quota ("max", -1).
static unsigned apply_quota(unsigned limit, const char *quota_text, const char *period_text) {
  long long quota = strtoll(quota_text, NULL, 10), period = strtoll(period_text, NULL, 10);
  if (quota <= 0 || period <= 0)
    return limit;
  long long cpus = quota / period + (quota % period != 0);
  return cpus < limit ? (unsigned)cpus : limit;
}

static unsigned group_limit(unsigned limit, const char *directory, bool v2) {
  char quota[LINE_CAPACITY], period[LINE_CAPACITY];
  if (v2) {
    if (!read_setting(directory, "cpu.max", quota)) // "max 100000" or "150000 100000"
      return limit;
    char *space = strchr(quota, ' ');
    return space ? apply_quota(limit, quota, space + 1) : limit;
  }
  if (!read_setting(directory, "cpu.cfs_quota_us", quota) ||
      !read_setting(directory, "cpu.cfs_period_us", period))
    return limit;
  return apply_quota(limit, quota, period);
}

// Own group's path in the v2 hierarchy ("0::/path") or in the v1 hierarchy of the cpu controller
// ("4:cpu,cpuacct:/path").
static bool find_group(char group[PATH_CAPACITY], bool v2) {
  FILE *file = fopen(BE_SYSTEM_ROOT "/proc/self/cgroup", "re");
  if (!file)
    return false;
  char line[LINE_CAPACITY];
  bool found = false;
  while (!found && read_line(file, line)) {
    char *controllers = strchr(line, ':');
    char *path = controllers ? strchr(controllers + 1, ':') : NULL;
    if (!path)
      continue;
    *controllers++ = '\0';
    *path++ = '\0';
    if (strlen(path) < PATH_CAPACITY && (v2 ? !*controllers : has_word(controllers, "cpu"))) {
      strcpy(group, path);
      found = true;
    }
  }
  fclose(file);
  return found;
}

// Where that hierarchy is mounted, and which of its groups is the mount's root. mountinfo(5):
// 31 23 0:28 ROOT MOUNT_POINT options... - TYPE source super_options
static bool find_mount(char mount[PATH_CAPACITY], char root[PATH_CAPACITY], bool v2) {
  FILE *file = fopen(BE_SYSTEM_ROOT "/proc/self/mountinfo", "re");
  if (!file)
    return false;
  char line[LINE_CAPACITY], type[16], options[256], point[PATH_CAPACITY];
  bool found = false;
  while (!found && read_line(file, line)) {
    const char *tail = strstr(line, " - ");
    if (!tail || sscanf(tail, " - %15s %*s %255s", type, options) != 2 ||
        sscanf(line, "%*s %*s %*s %1023s %1023s", root, point) != 2)
      continue;
    found =
        v2 ? strcmp(type, "cgroup2") == 0 : strcmp(type, "cgroup") == 0 && has_word(options, "cpu");
  }
  fclose(file);
  int length = snprintf(mount, PATH_CAPACITY, "%s%s", BE_SYSTEM_ROOT, found ? point : "");
  return found && length >= 0 && length < PATH_CAPACITY;
}

static unsigned quota_limit(unsigned limit, bool v2) {
  char group[PATH_CAPACITY], mount[PATH_CAPACITY], root[PATH_CAPACITY];
  if (!find_group(group, v2) || !find_mount(mount, root, v2))
    return limit;

  // A container may see only a part of the hierarchy: the group's path counts from the mount's
  // root where it begins with it; where it does not, the mount's root is all that can be seen.
  const char *below = group;
  if (strcmp(root, "/") != 0) {
    size_t length = strlen(root);
    bool inside = strncmp(group, root, length) == 0 && (!group[length] || group[length] == '/');
    below = inside ? group + length : "";
  }
  if (strstr(below, "/.."))
    below = "";

  char path[2 * PATH_CAPACITY];
  size_t top = strlen(mount);
  snprintf(path, sizeof path, "%s%s", mount, below);
  for (;;) {
    limit = group_limit(limit, path, v2);
    char *slash = strrchr(path + top, '/');
    if (!slash)
      return limit;
    *slash = '\0'; // the parent; at last the mount itself
  }
}
#endif

unsigned be_cpu_available(void) {
#if defined(_WIN32)
  DWORD_PTR mine, all;
  if (!GetProcessAffinityMask(GetCurrentProcess(), &mine, &all))
    return 1;
  unsigned cpus = 0;
  for (; mine; mine &= mine - 1)
    ++cpus;
  return cpus ? cpus : 1;
#else
  long online = sysconf(_SC_NPROCESSORS_ONLN);
  unsigned cpus = online > 1 ? (unsigned)online : 1;
#if defined(__linux__)
  cpu_set_t mask; // 1024 CPUs; the call fails on a larger machine, where nobody minds
  if (sched_getaffinity(0, sizeof mask, &mask) == 0 && CPU_COUNT(&mask) > 0)
    cpus = (unsigned)CPU_COUNT(&mask);
  cpus = quota_limit(cpus, true);
  cpus = quota_limit(cpus, false);
#endif
  return cpus;
#endif
}

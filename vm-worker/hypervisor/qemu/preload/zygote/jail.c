// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

/*
 * The jail of a VM, as vm-worker/jail makes it for one that is executed. The child's namespaces
 * are new and its mounts copies of its zygote's, which has the same root; what is left is
 * what each VM has of its own.
 */
#include "zygote.h"

#include <dlfcn.h>
#include <errno.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MOST_INSTRUCTIONS = 4096 };

bool have_filter;
static struct sock_filter instructions[MOST_INSTRUCTIONS];
static unsigned short instruction_count;

const char *enter_jail(const struct order *o)
{
	unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;

	if (syscall(SYS_setsid) < 0)
		return "no session of its own";
	if (sethostname(o->hostname, strlen(o->hostname)) != 0)
		return "its host name cannot be set";
	if (umount2("/proc", MNT_DETACH) != 0 || mount("proc", "/proc", "proc", MS_RDONLY | flags, "subset=pid") != 0)
		return "no /proc of its own";
	if (umount2(o->export, MNT_DETACH) != 0 || umount2(o->stage, MNT_DETACH) != 0 ||
	    mount("tmpfs", o->stage, "tmpfs", flags, o->stage_options) != 0 ||
	    mount(o->stage, o->export, NULL, MS_BIND, NULL) != 0 ||
	    mount(NULL, o->export, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | flags, NULL) != 0)
		return "no share of its own";
	return NULL;
}

const char *drop_capabilities(uint64_t keep)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	for (int c = 0; c < 64; c++)
		if (!(keep >> c & 1) && prctl(PR_CAPBSET_DROP, c, 0, 0, 0) != 0 && errno != EINVAL)
			return "a capability cannot be dropped";
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) != 0 || syscall(SYS_capget, &header, data) != 0)
		return "its capabilities cannot be read";
	for (int i = 0; i < 2; i++) {
		data[i].permitted &= (uint32_t)(keep >> 32 * i);
		data[i].effective = data[i].permitted;
		data[i].inheritable = 0;
	}
	if (syscall(SYS_capset, &header, data) != 0)
		return "capabilities cannot be dropped";
	return NULL;
}

/* Called while QEMU starts, with the filter that it is about to put itself under. */
void keep_filter(void *context)
{
	int (*export_bpf)(void *, int);
	ssize_t size;
	int fd;

	have_filter = false;
	*(void **)&export_bpf = dlsym(RTLD_DEFAULT, "seccomp_export_bpf");
	fd = memfd_create("filter", MFD_CLOEXEC);
	if (export_bpf == NULL || fd < 0)
		return;
	if (export_bpf(context, fd) == 0) {
		size = pread(fd, instructions, sizeof instructions, 0);
		if (size > 0 && size < (ssize_t)sizeof instructions && size % sizeof *instructions == 0) {
			instruction_count = size / sizeof *instructions;
			have_filter = true;
		}
	}
	close(fd);
}

/* All threads at once; no_new_privs is inherited from the zygote, whose starter has set it. */
const char *apply_filter(void)
{
	struct sock_fprog filter = { instruction_count, instructions };

	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &filter) != 0)
		return "QEMU's filter of system calls cannot be put in force";
	return NULL;
}

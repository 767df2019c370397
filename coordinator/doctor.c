/* coordinator/doctor.c: `sheaf doctor`: what this machine and this build have, for bug reports.
 * Starts no MPI, so it is safe on a login node. */
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include "base/dtype.h"
#include "comm/comm.h"
#include "coordinator/cluster.h"
#include "coordinator/commands.h"
#include "kernels/device.h"

static const char help[] =
    "usage: sheaf doctor\n"
    "\n"
    "Shows what this build contains and what this machine offers it.  Put it into bug reports.\n";

static const double GIB = 1024.0 * 1024.0 * 1024.0;

static void line(const char *name, const char *value)
{
    printf("%-14s %s\n", name, value);
}

/* The first line of `path`, without its newline. */
static int first_line(const char *path, char *out, size_t bytes)
{
    FILE *file = fopen(path, "r");
    if (file == NULL) return 0;
    int found = fgets(out, (int)bytes, file) != NULL;
    fclose(file);
    if (found) out[strcspn(out, "\n")] = '\0';
    return found;
}

static void print_build(void)
{
    char text[1024];
    snprintf(text, sizeof text, "%s (git %s), %s", SHEAF_VERSION, SHEAF_GIT, SHEAF_BUILD);
    line("sheaf", text);
    snprintf(text, sizeof text, "%s %s",
#if defined(__clang__)
             "clang",
#else
             "gcc",
#endif
             __VERSION__);
    line("compiler", text);
    line("MPI", sf_comm_has_mpi() ? sf_comm_mpi_version() : "not built in: ranks are threads");
    sf_device_describe(text, sizeof text);
    line("CPU backend", text);
    sf_device_describe_gpus(text, sizeof text);
    line("GPUs", text);
}

static void print_numbers(void)
{
    static const enum sf_dtype dtypes[] = { SF_F32, SF_BF16, SF_F16 };
    enum sf_isa isa = sf_isa_detect();
    char text[256] = "";
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        size_t used = strlen(text);
        snprintf(text + used, sizeof text - used, "%s%s %s", i == 0 ? "" : ", ",
                 sf_dtype_name(dtypes[i]),
                 sf_isa_multiplies(isa, dtypes[i]) ? "native" : "stored, multiplied in f32");
    }
    size_t used = strlen(text);
    snprintf(text + used, sizeof text - used, ", int8 by %s", sf_int8_name(sf_isa_int8(isa)));
    line("instructions", sf_isa_name(isa));
    line("products", text);
}

static void print_machine(void)
{
    struct utsname system;
    struct rlimit locked;
    struct statvfs shm;
    char text[1024], model[512];
    int32_t cores;
    int64_t memory;
    if (uname(&system) == 0) {
        snprintf(text, sizeof text, "%s %s %s", system.sysname, system.release, system.machine);
        line("system", text);
    }
    sf_machine_processor(model, sizeof model);
    line("processor", model);
    if (sf_machine_cores(&cores) == SF_OK) snprintf(text, sizeof text, "%d usable here", cores);
    else snprintf(text, sizeof text, "unknown: %s", sf_error_text());
    line("cores", text);
    if (sf_machine_memory(&memory) == SF_OK)
        snprintf(text, sizeof text, "%.1f GiB free here", (double)memory / GIB);
    else snprintf(text, sizeof text, "unknown: %s", sf_error_text());
    line("memory", text);
    if (first_line("/sys/kernel/mm/transparent_hugepage/enabled", model, sizeof model))
        snprintf(text, sizeof text, "transparent: %s", model);
    else snprintf(text, sizeof text, "transparent ones are not there");
    line("huge pages", text);
    if (statvfs("/dev/shm", &shm) == 0) {
        snprintf(text, sizeof text, "%.1f GiB free (/dev/shm)",
                 (double)shm.f_bavail * (double)shm.f_frsize / GIB);
        line("shared memory", text);
    }
    if (getrlimit(RLIMIT_MEMLOCK, &locked) == 0) {
        if (locked.rlim_cur == RLIM_INFINITY) snprintf(text, sizeof text, "unlimited");
        else snprintf(text, sizeof text, "%llu KiB", (unsigned long long)locked.rlim_cur / 1024);
        line("locked memory", text);
    }
}

int sf_cmd_doctor(int argc, char **argv)
{
    const char *operand;
    int exit_code;
    if (!sf_read_operand(argc, argv, help, NULL, &operand, &exit_code)) return exit_code;
    if (operand != NULL) return sf_usage_error("doctor", "no argument is taken: '%s'", operand);
    print_build();
    print_machine();
    print_numbers();
    return 0;
}

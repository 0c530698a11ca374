#!/bin/busybox sh
# The first process of a guest: makes it look like a small Debian, runs /guest/command, and reports how that ended.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=${TERM:-linux}
/bin/busybox --install -s /bin

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr
chmod 1777 /tmp
hostname guest
ip link set lo up
# A test holds a connection per descriptor.
ulimit -n 1048576

modprobe -q virtio_pci
modprobe -q virtio_console
for module in $(cat /guest/load); do
    reason=$(modprobe "$module" 2>&1) && continue
    # In place of the command, which counts on the module.
    echo "guest: cannot load module $module: $reason" >/guest/problem
    echo "cat /guest/problem; exit 1" >/guest/command
    break
done

if [ -e /debian ]; then
    for directory in proc sys dev run tmp root; do
        mount --rbind /$directory /debian/$directory
    done
    if [ -e /usr/bin/ipvs-guard ]; then
        mount --bind /usr/bin/ipvs-guard /debian/usr/local/bin/ipvs-guard
    fi
fi

# Prints the device of the port $1.
port() {
    until name=$(grep -lx "$1" /sys/class/virtio-ports/*/name 2>/dev/null); do usleep 10000; done
    name=${name%/name}
    echo "/dev/${name##*/}"
}

token=$(cat /guest/token)
if [ -e /guest/interactive ]; then
    until [ -e /dev/hvc0 ]; do usleep 10000; done
    # The terminal outside turns line feeds into line starts already.
    stty -F /dev/hvc0 -onlcr
    setsid -c sh /guest/command </dev/hvc0 >/dev/hvc0 2>&1
    status=$?
    printf '%s %s\n' "$token" "$status" >/dev/hvc0
else
    port=$(port output)
    # Guest time that counts instructions is for the command alone.
    if [ -e /guest/pulse ]; then
        while echo; do sleep 1; done >"$(port pulse)" &
    fi
    # A port opens only once, so the command writes to a pipe: /dev/stdout and the like work as they do elsewhere.
    mkfifo /run/output
    cat /run/output >"$port" &
    writer=$!
    setsid sh /guest/command </dev/null >/run/output 2>&1
    status=$?
    # What the command left running would keep the pipe open for ever.
    for process in /proc/[0-9]*; do
        process=${process#/proc/}
        [ "$process" = 1 ] || [ "$process" = "$writer" ] || kill -9 "$process" 2>/dev/null
    done
    wait "$writer"
    printf '%s %s\n' "$token" "$status" >"$port"
fi

# Whoever reads the token ends this machine.
sleep 10
poweroff -f

#!/bin/bash
# First process of a machine in namespaces of its own (network, processes, mounts, host name): private folders, sshd,
# and then nothing but collecting orphans. When it is killed the kernel ends everything that ran on the machine.
#
#     machine.sh NAME HOME FOLDER CHECKOUT     FOLDER: seen by the tests and by every machine, there as /run/machines
set -euo pipefail
name=$1 home=$2 checkout=$4

hostname "$name"
mount -t tmpfs -o mode=755 machine /run
mkdir /run/machines /run/checkout
mount --bind "$3" /run/machines
mount --bind "$checkout" /run/checkout
for folder in /tmp /dev/shm; do
    mount -t tmpfs -o mode=1777 machine "$folder"
done
if [[ ! -d $checkout ]]; then # it lies in /tmp
    mkdir -p "$checkout"
    mount --bind /run/checkout "$checkout"
fi
exchange=/run/machines/$name
sed "s#^root:.*#root:x:0:0:root:$home:/bin/bash#" /etc/passwd >/run/passwd
mount --bind /run/passwd /etc/passwd
mkdir -p -m 700 "$home" "$home/.ssh"
mkdir -p -m 755 /run/sshd
cp "/run/machines/key" "$home/.ssh/id_ed25519"
cp "/run/machines/key.pub" "$home/.ssh/authorized_keys"
chmod 600 "$home/.ssh/"*
printf '# a login shell sources what set-up writes here\n' >"$home/.profile"

cat >/run/sshd_config <<CONFIG
Port 22
HostKey /run/machines/host_key
AuthorizedKeysFile $home/.ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
StrictModes no
UsePAM no
MaxSessions 50
MaxStartups 50
CONFIG
/usr/sbin/sshd -f /run/sshd_config -E "$exchange/sshd.log"
touch "$exchange/ready"
while :; do
    sleep 3600 &
    wait $! || true
done

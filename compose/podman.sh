# Sourced by compose/test.sh: a podman that works as root without systemd, a Docker engine or an image registry.
# The base image is debootstrapped and named like the upstream one, so that Dockerfiles stay as users get them.

lab=${OPENMINT_CONTAINER_LAB:-/var/tmp/openmint-containers}

need_tools() {
  if ! command -v podman >/dev/null || ! command -v runc >/dev/null || ! command -v debootstrap >/dev/null; then
    echo "installing podman, runc and debootstrap …"
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends podman buildah runc netavark aardvark-dns \
        catatonit iptables nftables uidmap debootstrap; } >/dev/null 2>&1 || true
  fi
  command -v podman >/dev/null && command -v runc >/dev/null && command -v debootstrap >/dev/null || {
    echo "no container runtime: podman, runc and debootstrap are needed and could not be installed" >&2; exit 1; }
}

set_up_podman() {
  mkdir -p "$lab/tmp"
  cat > "$lab/storage.conf" <<X
[storage]
driver = "overlay"
graphroot = "$lab/graph"
runroot = "$lab/run"
X
  # Without CAP_SYS_RESOURCE the default limits can't be set; crun refuses a hybrid cgroup tree.
  cat > "$lab/containers.conf" <<X
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=20000:20000"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[network]
network_backend = "netavark"
X
  export CONTAINERS_STORAGE_CONF=$lab/storage.conf CONTAINERS_CONF=$lab/containers.conf
  export BUILDAH_ISOLATION=oci BUILDAH_FORMAT=docker TMPDIR=$lab/tmp
}

make_base_image() {
  podman image exists docker.io/library/python:3.11-slim-bookworm && return
  local mirror
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m1 'debian/$')
  rm -rf "$lab/rootfs"
  debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,python3-pip,wget,libnuma1 bookworm \
    "$lab/rootfs" "$mirror" >"$lab/debootstrap.log" 2>&1 || { tail -5 "$lab/debootstrap.log" >&2; exit 1; }
  tar -C "$lab/rootfs" -c . | podman import --change 'CMD ["bash"]' - localhost/openmint-debian:bookworm >/dev/null
  rm -rf "$lab/rootfs"
  podman build -q -t docker.io/library/python:3.11-slim-bookworm -f compose/ci/Dockerfile.python . >/dev/null
}

"""The driver for hosts that libvirt manages: QEMU/KVM first, and libvirt's own test hypervisor."""

from drivers.libvirt.driver import LibvirtCompute

__all__ = ["LibvirtCompute"]

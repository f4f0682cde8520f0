"""The hands of planvirt: compute drivers and image stores, and the tables that name them."""

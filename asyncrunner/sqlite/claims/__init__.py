"""Change items under the fence of their claims: claim due items, settle outcomes, and recover the items of lost workers."""
